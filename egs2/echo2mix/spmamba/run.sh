#!/usr/bin/env bash
# SPMamba on Echo2Mix, 16 kHz: the paper's experiment.
#
#   ./run.sh --echo2mix_dir DIR   the archive, unpacked
#
# Ablations: --enh_config conf/train_*.yaml.
# Needs: this package with the extras `recipes`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/echo2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 16k --enh_config conf/train_spmamba.yaml -- "$@"
