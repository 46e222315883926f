# What all models of this corpus share; sourced by their run.sh.
# shellcheck shell=bash disable=SC2034 # used by run_recipe

corpus=wsj0_2mix
data_options="audio_dir wsj0_dir metadata_dir wsj0_2mix_dir min_or_max overlap_ratio"
data_options+=" test_overlap partial_train seed skip_bad verify_all"
data_licence="WSJ0 (LDC93S6A), under its LDC licence"
