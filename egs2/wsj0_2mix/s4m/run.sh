#!/usr/bin/env bash
# S4M on WSJ0-2mix, 8 kHz: the paper's experiment.
#
#   ./run.sh --wsj0_dir DIR --metadata_dir DIR   from the corpus WSJ0 and the mixing lists
#   ./run.sh --wsj0_2mix_dir DIR                 from mixtures that exist
#
# S4M-tiny: --enh_config conf/train_s4m_tiny.yaml.
# Needs: this package with the extras `recipes,wsj0`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/wsj0_2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 8k --enh_config conf/train_s4m.yaml -- "$@"
