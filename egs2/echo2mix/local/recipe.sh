# What all models of this corpus share; sourced by their run.sh.
# shellcheck shell=bash disable=SC2034 # used by run_recipe

corpus=echo2mix
data_options="audio_dir echo2mix_dir skip_bad verify_all"
data_licence="Echo2Mix (LibriSpeech in simulated rooms), as its authors license it"
