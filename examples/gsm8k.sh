#!/bin/sh
# A verifier as the reward, from problems to a page of figures: sh examples/gsm8k.sh PROBLEMS [FOLDER]
#
# PROBLEMS: rows of prompt, answer and split (gzip or not), or gsm8k's own train.jsonl of question and answer.
# FOLDER (runs/gsm8k) takes the rows, the models and the page. About 4 minutes of one core.
# A model of 3M parameters hardly ever earns a reward of one for the right number: this shows the path, no gain.
set -eu
problems=$1
out=${2:-runs/gsm8k}
here=$(dirname "$0")
model=${MODEL:-small-lm}
steps=${STEPS:-20}
samples=${EVAL_SAMPLES:-256}
export OMP_NUM_THREADS=1
# gsm8k.py writes its page with the functions of experiments/, which is not part of the package.
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

# 1. The training problems alone, every 20th of them held out. `number` compares with the column `answer`.
python "$here/gsm8k.py" prepare "$problems" "$out/train.jsonl"

# 2. The model as it is: sample, compare the last number, improve.
valence improve "$out/train.jsonl" --model "$model" --reward number --method rebel --num-epochs 1 \
    --max-steps "$steps" --batch-size 8 --num-samples 4 --max-new-tokens 64 --eval-every 0 --eval-samples "$samples" \
    --separator "" --threads 1 --out "$out/plain"

# 3. The same after the form of an answer, `#### 42`, has been learned from the rows: now some guesses are right.
valence align "$out/train.jsonl" --model "$model" --method supervised --lr 1e-3 --max-steps "$((5 * steps))" \
    --batch-size 16 --log-every 50 --eval-every 0 --save-every 0 --separator "" --threads 1 --out "$out/form"
valence improve "$out/train.jsonl" --model "$out/form/model" --reward number --method rebel --num-epochs 1 \
    --max-steps "$steps" --batch-size 8 --num-samples 4 --max-new-tokens 64 --eval-every 0 --eval-samples "$samples" \
    --separator "" --threads 1 --out "$out/after-form"

# 4. The figures of the runs' metrics.jsonl, as results.json and a page.
python "$here/gsm8k.py" results "$out" "$out/page"
