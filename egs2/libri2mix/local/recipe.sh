# What all models of this corpus share; sourced by their run.sh.
# shellcheck shell=bash disable=SC2034 # used by run_recipe

corpus=libri2mix
data_options="audio_dir librispeech_dir wham_noise_dir metadata_dir libri2mix_dir min_or_max"
data_options+=" train_subset mixture types skip_bad verify_all"
data_licence="LibriSpeech, CC BY 4.0; WHAM! noise (in mix_both), CC BY-NC 4.0"
