# What all models of this corpus share; sourced by their run.sh.
# shellcheck shell=bash disable=SC2034 # used by run_recipe

corpus=lrs2_2mix
data_options="audio_dir lrs2_2mix_dir skip_bad verify_all"
data_licence="LRS2 (BBC), under its research agreement"
