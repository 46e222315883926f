# What all models of this corpus share; sourced by their run.sh.
# shellcheck shell=bash disable=SC2034 # used by run_recipe

corpus=wham
data_options="audio_dir wham_noise_dir wsj0_2mix_dir wsj0_dir wham_dir min_or_max mixture"
data_options+=" types overlap_ratio test_overlap noise_activity test_noise partial_train seed skip_bad"
data_options+=" verify_all"
data_licence="WSJ0 (LDC93S6A), under its LDC licence; WHAM! noise, CC BY-NC 4.0"
