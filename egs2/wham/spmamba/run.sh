#!/usr/bin/env bash
# SPMamba on WHAM!, 8 kHz: the paper's experiment.
#
#   ./run.sh --wham_noise_dir DIR --wsj0_2mix_dir DIR   from the noise and wsj0-2mix
#   ./run.sh --wham_dir DIR                             from mixtures that exist
#
# Needs: this package with the extras `recipes,wsj0`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/wham/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 8k --enh_config conf/train_spmamba.yaml -- "$@"
