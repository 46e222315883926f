#!/usr/bin/env bash
# A separation experiment in stages; every corpus and model uses this one script.
#
#   1 data preparation   2 formatting           3 training      4 separation of valid and test sets
#   5 scoring            6 profiling            7 report        8 packing    9 publishing
#
# Each stage can be run alone, again, or after a kill: finished results are recognised by a hash of
# what they depend on, unfinished ones are made again, training continues after its last epoch.
# Arguments after `--` go to local/data.sh.
set -euo pipefail

# Stages
stage=1          # first stage to run
stop_stage=7     # last stage to run
nj=              # parallel jobs (default: number of processors)
ngpu=0           # GPUs for training (and separation if at least 1); 0 is the CPU
num_nodes=1      # machines for training
python=python3   # interpreter

# Data
corpus=          # name of the corpus (set by run.sh)
fs=8k            # sampling rate: 8k or 16k
data_tag=        # name of the data variant (default: corpus, rate and a hash of the data options)
train_set=train  # names of the sets
valid_set=valid
test_sets="test" # one or more, separated by spaces
audio_format=wav # container of formatted audio: wav or flac
min_s=0          # shorter training and validation utterances are left out (seconds)
max_s=0          # longer ones are left out (seconds; 0 is no limit)
spk_num=2        # speakers in a mixture
use_noise_ref=false # load the noise of each mixture (noise1.scp), kept when mixing dynamically

# Training
enh_config=      # training configuration (YAML)
enh_args=        # further options of espnet2.bin.enh_train, e.g. "--max_epoch 5"
enh_tag=         # name of the experiment (default: from configuration, data and options)
dynamic_mixing=  # true: new mixtures in every epoch (default: as in the configuration)
speed_perturb_factors= # e.g. "0.9 1.0 1.1" (default: as in the configuration)
train_threads=   # CPU threads for training (default: number of processors)

# Separation and scoring
inference_model=valid.si_snr_loss.best.pth # weights to use
engine=espnet    # espnet: espnet2.bin.enh_inference; sepx: espnet2_sepx.bin.separate (any length)
inference_args=  # further options of the engine
metrics=         # e.g. "si_snr sdr stoi" (default: all that are installed)
score_valid=true # separate and score the validation set, too

# Profiling and report
profile_seconds=4 # length of the input that is profiled
profile_curve="1 4 16" # lengths in seconds over which time and memory are measured; "" for none
profile_utterances=20  # test mixtures for the cost by number of speakers (models that skip work)
examples=5        # test mixtures to show and play in the report

# Packing and publishing
licence=         # licence of the trained model, e.g. CC-BY-4.0
data_licence=    # what the training data are and under which licence
zoo_dir=         # folder of a self-hosted model zoo
zoo_url=         # web address at which zoo_dir is served (default: file path)
hf_repo=         # Hugging Face repository, e.g. user/name
dry_run=false    # true: show what would be published, or (stage 1) written as data, and do nothing

# shellcheck source=utils/stage.sh
. utils/stage.sh
# shellcheck source=utils/parse_options.sh
. utils/parse_options.sh
# shellcheck source=egs2/TEMPLATE/sep1/path.sh
. ./path.sh
# shellcheck source=egs2/TEMPLATE/sep1/cmd.sh
. ./cmd.sh

# ---- Check the options, name the folders ---------------------------------------------------------

case "${fs}" in
    8k) sample_rate=8000 ;;
    16k) sample_rate=16000 ;;
    *) die "--fs '${fs}': expected 8k or 16k" ;;
esac
[[ "${stage}" =~ ^[1-9]$ && "${stop_stage}" =~ ^[1-9]$ ]] ||
    die "--stage '${stage}' --stop_stage '${stop_stage}': expected numbers from 1 to 9"
[[ "${ngpu}" =~ ^[0-9]+$ ]] || die "--ngpu '${ngpu}': expected a number"
[[ "${engine}" =~ ^(espnet|sepx)$ ]] || die "--engine '${engine}': expected espnet or sepx"
[[ "${dynamic_mixing}" =~ ^(true|false)?$ ]] ||
    die "--dynamic_mixing '${dynamic_mixing}': expected true or false"
[ -n "${corpus}" ] || die "--corpus is empty; start a recipe's run.sh, for example egs2/mini/tf_moe/run.sh"
[ -f "${enh_config}" ] || die "--enh_config '${enh_config}': no such file; the recipe's are conf/train_*.yaml"
config_rate=$(sed -n 's/^ *sample_rate: *\([0-9]*\).*/\1/p' "${enh_config}" | head -n 1)
[ "${config_rate:-${sample_rate}}" = "${sample_rate}" ] ||
    die "${enh_config} is for ${config_rate} Hz; give a configuration for --fs ${fs}, or another --fs"
"${python}" -c 'import espnet2_sepx, importlib.util as u, sys; sys.exit(u.find_spec("espnet2") is None)' \
    2>/dev/null || die "${python} does not find espnet2_sepx and espnet; run 'make venv' in the repository, or see python -m espnet2_sepx.bin.doctor"
processors=$(env -u OMP_NUM_THREADS nproc) # nproc obeys that variable
nj=${nj:-${processors}}
train_threads=${train_threads:-${processors}}

if [ -z "${data_tag}" ]; then
    data_tag="${corpus}_${fs}"
    what_data=() # the options that determine the data
    for option in "$@"; do
        [[ "${option}" =~ ^--(skip_bad|verify_all)= ]] || what_data+=("${option}")
    done
    [ ${#what_data[@]} -eq 0 ] || data_tag+="_$(hash_of "${what_data[@]}" | cut -c1-6)"
fi
corpus_dir=$(cd .. && pwd)
data="${corpus_dir}/data/${data_tag}"
dump="${corpus_dir}/dump/${data_tag}"
if [ -z "${enh_tag}" ]; then
    enh_tag=$(basename "${enh_config}" .yaml)
    enh_tag="${enh_tag#train_}_${data_tag}"
    enh_tag+="${enh_args:+_$(printf '%s' "${enh_args}" | sed -e 's/--//g' -e 's|[^A-Za-z0-9._-]|_|g')}"
    enh_tag+="${dynamic_mixing:+_dm_${dynamic_mixing}}"
    enh_tag+="${speed_perturb_factors:+_sp_${speed_perturb_factors// /_}}"
fi
exp="exp/${enh_tag}"

all_sets="${train_set} ${valid_set} ${test_sets}"
eval_sets="${test_sets}"
[ "${score_valid}" = false ] || eval_sets="${valid_set} ${test_sets}"
read -r -a train_cmd <<<"${train_cmd}"
read -r -a cuda_cmd <<<"${cuda_cmd}"
read -r -a decode_cmd <<<"${decode_cmd}"
read -r -a enh_args <<<"${enh_args}"
read -r -a inference_args <<<"${inference_args}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" # warnings of third parties would bury the progress

mkdir -p "${data}" "${dump}" "${exp}" 2>/dev/null ||
    die "cannot create ${data} and ${PWD}/${exp}; choose a place you may write to"

# ---- Stages --------------------------------------------------------------------------------------

# step LABEL LOG COMMAND...: run one job with visible progress; everything ends if this script is killed.
step() {
    "${train_cmd[@]}" --progress "$1" "${@:2}"
}

if in_stages 1 "data preparation (${data_tag})"; then
    prepare=(local/data.sh --data_dir "${data}" --audio_dir "${corpus_dir}/audio/${data_tag}"
        --fs "${sample_rate}" --nj "${nj}" "$@")
    if [ "${dry_run}" = true ] && [ "${stop_stage}" -lt 8 ]; then
        exec "${prepare[@]}" --dry_run true
    fi
    # The lock lets several models of one corpus start at the same time.
    step "data" "${data}/log/prepare.log" flock "${data}/.lock" "${prepare[@]}"
fi

# What the formatted set $1 depends on.
set_dependencies() {
    local file
    echo "${sample_rate} ${audio_format} ${min_s} ${max_s}"
    for file in "${data}/$1"/{*.scp,utt2*,source2spk,metadata.csv}; do
        [ ! -f "${file}" ] || echo "@${file}"
    done
}

if in_stages 2 "formatting"; then
    for dset in ${all_sets}; do
        need_file "${data}/${dset}/wav.scp" 1
        mapfile -t depends < <(set_dependencies "${dset}")
        is_done "${dump}/${dset}.done" "${depends[@]}" && [ -d "${dump}/${dset}" ] && continue
        limits=(--min_s "${min_s}" --max_s "${max_s}")
        [[ " ${test_sets} " == *" ${dset} "* ]] && limits=() # test sets stay whole
        step "formatting ${dset}" "${dump}/log/format_${dset}.log" flock "${dump}/.lock" \
            "${python}" -m espnet2_sepx.bin.format_data --in "${data}/${dset}" --out "${dump}/${dset}" \
            --fs "${sample_rate}" --audio_format "${audio_format}" --nj "${nj}" "${limits[@]}"
        mark_done "${dump}/${dset}.done" "${depends[@]}"
    done
fi

# Options that name the signals of a set for ESPnet: signal_options train|valid SET
signal_options() {
    local n
    printf -- '--%s_shape_file\n%s/utt2num_samples\n' "$1" "${dump}/$2"
    printf -- '--%s_data_path_and_name_and_type\n%s/wav.scp,speech_mix,sound\n' "$1" "${dump}/$2"
    for n in $(seq "${spk_num}"); do
        printf -- '--%s_data_path_and_name_and_type\n%s/spk%s.scp,speech_ref%s,sound\n' \
            "$1" "${dump}/$2" "${n}" "${n}"
    done
    [ "${use_noise_ref}" = false ] || printf -- \
        '--%s_data_path_and_name_and_type\n%s/noise1.scp,noise_ref1,sound\n' "$1" "${dump}/$2"
}

# Everything that training depends on; data and options together.
train_options() {
    echo "--preprocessor_conf"
    echo "sample_rate=${sample_rate}"
    echo "--preprocessor_conf"
    echo "num_spk=${spk_num}"
    [ ! -f "${dump}/${train_set}/source.scp" ] || printf -- '--preprocessor_conf\n%s\n' \
        "source_scp=${dump}/${train_set}/source.scp" "source2spk=${dump}/${train_set}/source2spk"
    [ -z "${dynamic_mixing}" ] || printf -- '--preprocessor_conf\n%s\n' "dynamic_mixing=${dynamic_mixing}"
    [ -z "${speed_perturb_factors}" ] || printf -- '--preprocessor_conf\n%s\n' \
        "speed_perturb_factors=[${speed_perturb_factors// /,}]"
    signal_options train "${train_set}"
    signal_options valid "${valid_set}"
    [ ${#enh_args[@]} -eq 0 ] || printf '%s\n' "${enh_args[@]}"
}

if in_stages 3 "training (log: ${exp}/train.log)"; then
    need_file "${dump}/${train_set}.done" 2
    need_file "${dump}/${valid_set}.done" 2
    [ "${dynamic_mixing}" != true ] || [ -f "${dump}/${train_set}/source.scp" ] ||
        die "--dynamic_mixing true: ${dump}/${train_set}/source.scp is missing; this corpus has no single-speaker sources"
    mapfile -t options < <(train_options)
    depends=("${options[@]}" "@${enh_config}" "@${dump}/${train_set}.done" "@${dump}/${valid_set}.done")
    if ! is_done "${exp}/train.done" "${depends[@]}"; then
        if [ -f "${exp}/checkpoint.pth" ] && ! is_done "${exp}/train.started" "${depends[@]}"; then
            die "${exp} was trained with another configuration, data or options; give a new --enh_tag, or delete it"
        fi
        mark_done "${exp}/train.started" "${depends[@]}"
        train=("${python}" -m espnet2.bin.enh_train
            --config "${enh_config}" --output_dir "${exp}" --resume true "${options[@]}")
        if [ "${num_nodes}" -gt 1 ]; then
            "${python}" -m espnet2.bin.launch --cmd "${cuda_cmd[*]}" --log "${exp}/train.log" \
                --ngpu "${ngpu}" --num_nodes "${num_nodes}" --init_file_prefix "${exp}/.dist_init_" \
                --multiprocessing_distributed true -- "${train[@]}"
        else
            distributed=$([ "${ngpu}" -gt 1 ] && echo true || echo false)
            "${cuda_cmd[@]}" --progress training --gpu "${ngpu}" --num-threads "${train_threads}" \
                "${exp}/train.log" "${train[@]}" --ngpu "${ngpu}" --multiprocessing_distributed "${distributed}"
        fi
        mark_done "${exp}/train.done" "${depends[@]}"
    fi
fi

# Separate the set $1: jobs write beside each other, then everything moves to its place at once.
separate_set() {
    local out="${PWD}/${exp}/separated_$1" jobs n job key gpu=0 separate
    local work="${PWD}/${exp}/.separated_$1.tmp"
    rm -rf "${work}"
    mkdir -p "${work}/log"
    [ "${ngpu}" -eq 0 ] || gpu=1
    jobs=$(wc -l <"${dump}/$1/wav.scp")
    [ "${jobs}" -le "${nj}" ] || jobs=${nj}
    # shellcheck disable=SC2046 # one word per job
    utils/split_scp.py "${dump}/$1/wav.scp" $(for n in $(seq "${jobs}"); do echo "${work}/log/keys.${n}.scp"; done)
    if [ "${engine}" = sepx ]; then
        separate=("${python}" -m espnet2_sepx.bin.separate "${work}/log/keys.JOB.scp" --fs "${sample_rate}"
            --model "${exp}" --model_file "${inference_model}" --output "${work}/output.JOB" --threads 1)
        [ "${gpu}" -eq 0 ] || separate+=(--device cuda)
    else
        # A loss like SI-SNR leaves the level open, and files of 16 bits clip: each output gets its own
        separate=("${python}" -m espnet2.bin.enh_inference --ngpu "${gpu}" --fs "${sample_rate}"
            --normalize_output_wav true
            --train_config "${exp}/config.yaml" --model_file "${exp}/${inference_model}"
            --data_path_and_name_and_type "${dump}/$1/wav.scp,speech_mix,sound"
            --key_file "${work}/log/keys.JOB.scp" --output_dir "${work}/output.JOB")
    fi
    "${decode_cmd[@]}" --progress "separating $1" --gpu "${gpu}" JOB=1:"${jobs}" "${work}/log/separate.JOB.log" \
        "${separate[@]}" "${inference_args[@]}"
    for n in $(seq "${spk_num}"); do
        mkdir -p "${work}/wavs/${n}"
        for job in $(seq "${jobs}"); do
            mv "${work}/output.${job}/wavs/${n}"/*.wav "${work}/wavs/${n}/"
        done
        while read -r key _; do
            echo "${key} ${out}/wavs/${n}/${key}.wav"
        done <"${dump}/$1/wav.scp" >"${work}/spk${n}.scp"
    done
    rm -rf "${work}"/output.* "${out}"
    mv "${work}" "${out}"
}

if in_stages 4 "separation"; then
    need_file "${exp}/${inference_model}" 3
    need_file "${exp}/train.done" 3
    for dset in ${eval_sets}; do
        need_file "${dump}/${dset}.done" 2
        depends=("@${exp}/${inference_model}" "@${dump}/${dset}.done" "${engine}" "${inference_args[@]}")
        is_done "${exp}/separated_${dset}/done" "${depends[@]}" && continue
        separate_set "${dset}"
        mark_done "${exp}/separated_${dset}/done" "${depends[@]}"
    done
fi

if in_stages 5 "scoring"; then
    for dset in ${eval_sets}; do
        need_file "${exp}/separated_${dset}/done" 4
        depends=("@${exp}/separated_${dset}/done" "${metrics}")
        is_done "${exp}/score_${dset}/done" "${depends[@]}" && continue
        # shellcheck disable=SC2086 # one word per metric
        step "scoring ${dset}" "${exp}/log/score_${dset}.log" "${python}" -m espnet2_sepx.bin.score --ref "${dump}/${dset}" --est "${exp}/separated_${dset}" \
            --out "${exp}/score_${dset}" --fs "${sample_rate}" --nj "${nj}" ${metrics:+--metrics ${metrics}}
        mark_done "${exp}/score_${dset}/done" "${depends[@]}"
    done
fi

if in_stages 6 "profiling"; then
    need_file "${exp}/${inference_model}" 3
    depends=("@${exp}/${inference_model}" "@${exp}/config.yaml" "${profile_seconds}" "${profile_curve}"
        "${profile_utterances}")
    if ! is_done "${exp}/profile/done" "${depends[@]}"; then
        # shellcheck disable=SC2086 # one word per length
        step "profiling" "${exp}/log/profile.log" "${python}" -m espnet2_sepx.bin.measure_cost --config "${exp}/config.yaml" \
            --model_file "${exp}/${inference_model}" --seconds "${profile_seconds}" --fs "${sample_rate}" \
            --data_dir "${dump}/${test_sets%% *}" --max_utterances "${profile_utterances}" \
            ${profile_curve:+--curve ${profile_curve}} --out "${exp}/profile/cost.json"
        # A DSN also tells what it does with less, or more, of its work.
        ! grep -qx 'separator: dsn' "${exp}/config.yaml" || step "profiling budgets" "${exp}/log/budgets.log" \
            "${python}" -m espnet2_sepx.bin.measure_budgets --config "${exp}/config.yaml" \
            --model_file "${exp}/${inference_model}" --data_dir "${dump}/${test_sets%% *}" \
            --fs "${sample_rate}" --out "${exp}/profile/budgets.json"
        mark_done "${exp}/profile/done" "${depends[@]}"
    fi
fi

if in_stages 7 "report"; then
    report_dirs=()
    depends=("${examples}" "@${exp}/profile/done")
    need_file "${exp}/profile/done" 6
    for dset in ${test_sets}; do
        need_file "${exp}/score_${dset}/done" 5
        report_dirs+=("${dump}/${dset}")
        depends+=("@${exp}/score_${dset}/done")
    done
    if ! is_done "${exp}/report.done" "${depends[@]}"; then
        step "report" "${exp}/log/report.log" "${python}" -m espnet2_sepx.bin.report --exp "${exp}" --data_dirs "${report_dirs[@]}" \
            --examples "${examples}" --fs "${sample_rate}" --model_file "${exp}/${inference_model}" \
            --out "${exp}/report.html"
        mark_done "${exp}/report.done" "${depends[@]}"
    fi
    cat "${exp}/RESULTS.md"
    echo
    echo "Report: ${PWD}/${exp}/report.html"
fi

pack="${exp}/pack/${enh_tag}.zip"

if in_stages 8 "packing"; then
    need_file "${exp}/${inference_model}" 3
    need_file "${exp}/RESULTS.md" 7
    depends=("@${exp}/${inference_model}" "@${exp}/config.yaml" "@${exp}/RESULTS.md")
    if ! is_done "${exp}/pack/done" "${depends[@]}"; then
        rm -rf "${exp}/pack"
        mkdir -p "${exp}/pack"
        # ESPnet's packer names files as they are given: from inside the experiment they are short
        step "packing" "${exp}/log/pack.log" env -C "$(cd -P "${exp}" && pwd)" "${python}" -m espnet2.bin.pack enh \
            --train_config config.yaml --model_file "${inference_model}" \
            --option RESULTS.md --option RESULTS.json --outpath "pack/.${enh_tag}.zip"
        first_mixture=$(head -n 1 "${dump}/${test_sets%% *}/wav.scp")
        step "checking the pack" "${exp}/log/check_pack.log" "${python}" -m espnet2_sepx.bin.check_pack \
            --pack "${exp}/pack/.${enh_tag}.zip" --exp "${exp}" --wav "${first_mixture#* }" \
            --model_file "${inference_model}" --fs "${sample_rate}"
        mv "${exp}/pack/.${enh_tag}.zip" "${pack}"
        mark_done "${exp}/pack/done" "${depends[@]}"
    fi
    echo "Packed model: ${PWD}/${pack}"
fi

if in_stages 9 "publishing"; then
    need_file "${exp}/pack/done" 8
    [ -n "${zoo_dir}${hf_repo}" ] || die "stage 9 needs --zoo_dir DIR or --hf_repo USER/NAME"
    "${python}" -m espnet2_sepx.bin.publish --pack "${pack}" --exp "${exp}" --dry_run "${dry_run}" --corpus "${corpus}" \
        ${licence:+--licence "${licence}"} ${data_licence:+--data_licence "${data_licence}"} \
        ${zoo_dir:+--zoo_dir "${zoo_dir}"} ${zoo_url:+--zoo_url "${zoo_url}"} ${hf_repo:+--hf_repo "${hf_repo}"}
fi
