#!/usr/bin/env bash
# DSN on Libri2Mix, 8 kHz: beyond the paper.
#
#   ./run.sh --librispeech_dir DIR --metadata_dir DIR   from LibriSpeech and the official tables
#   ./run.sh --libri2mix_dir DIR                        from mixtures that exist
#
# Needs: this package with the extras `recipes`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/libri2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 8k --enh_config ../../wsj0_2mix/dsn/conf/train_dsn.yaml -- "$@"
