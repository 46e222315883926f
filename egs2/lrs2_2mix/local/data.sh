#!/usr/bin/env bash
# Prepare LRS2-2Mix once for all models: <data_dir>/{train,valid,test}, at 16 kHz as released;
# formatting brings them to the rate of the recipe.
set -euo pipefail

data_dir=data     # where the sets' tables go
audio_dir=audio   # where audio goes that is generated: choose a large disk
fs=16000          # sampling rate in Hz: 8000 or 16000
nj=               # processes [as many as processors]
lrs2_2mix_dir=    # the archive unpacked: DIR/lrs2_rebuild/audio/wav16k/min/{tr,cv,tt}/{mix,s1,s2}
skip_bad=false    # go on without mixtures whose files are missing or damaged
verify_all=false  # check every mixture that is generated, not only some
dry_run=false     # say how much there is to write and how long it takes, write nothing

# shellcheck source=utils/stage.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/stage.sh"
# shellcheck source=utils/parse_options.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/parse_options.sh"

options=(lrs2_2mix --out "${data_dir}" --audio_dir "${audio_dir}" --fs "${fs}")
add_option nj "${nj}"
add_option lrs2_2mix_dir "${lrs2_2mix_dir}"
add_option skip_bad "${skip_bad}"
add_option verify_all "${verify_all}"
add_option dry_run "${dry_run}"

exec python3 -m espnet2_sepx.bin.make_corpus "${options[@]}"
