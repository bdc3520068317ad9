#!/usr/bin/env bash
# Quantizes a model in CI and fails when the quality does not hold:
#   QUANTRY_SERVER=HOST:PORT quantize.sh MODEL_DIR TEXT OUT_DIR [flags of quantry submit]
# RUN_KEY names the run (default: the commit, as GitHub, GitLab, Jenkins or git tell
# it, and the arguments); run again with the same one, it comes back to its job. The
# report goes to GITHUB_STEP_SUMMARY, if set.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
model=$1 text=$2 out=$3
shift 3

commit=${GITHUB_SHA:-${CI_COMMIT_SHA:-${GIT_COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}}}
if [ -z "${RUN_KEY:-}$commit" ]; then
  echo "quantize.sh: RUN_KEY: wanted a name for this run, or a commit, got neither" >&2
  exit 2
fi
key=${RUN_KEY:-$commit $model $text $*}
hash=$(printf %s "$key" | sha256sum)
request_id=${hash:0:8}-${hash:8:4}-4${hash:13:3}-8${hash:17:3}-${hash:20:12}

job=$(mktemp)
trap 'rm -f "$job"' EXIT
status=0
for pause in 5 20 60 0; do
  status=0
  quantry submit "$model" --calibration "$text" --evaluation "$text" --request-id "$request_id" \
    --download "$out" --output json "$@" >"$job" || status=$?
  # Quota, server unreachable: come back to the same job.
  case $status in 6 | 7) [ "$pause" = 0 ] || sleep "${RETRY_PAUSE:-$pause}" ;; *) break ;; esac
done

if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -s "$job" ]; then
  {
    echo '### quantry'
    echo '```'
    quantry get "$(grep -o 'tenants/[^"]*/quantizationJobs/[^"]*' "$job" | head -n 1)" || true
    echo '```'
  } >>"$GITHUB_STEP_SUMMARY"
fi
exit "$status"
