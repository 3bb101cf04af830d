# wait_for SECONDS WHAT LOG COMMAND…
#
# Returns when the command succeeds. Exits with a reason if the job that was started last ends
# before that, or after so many seconds. For bash: `. wait.sh`.
wait_for() {
    local seconds=$1 what=$2 log=$3 job=$! why="did not answer within $1 s"
    shift 3
    for _ in $(seq "$seconds"); do
        if "$@" > /dev/null 2>&1; then return; fi
        if ! kill -0 "$job" 2> /dev/null; then why="has ended"; break; fi
        sleep 1
    done
    echo "error: $what $why: $(tail -n 1 "$log") (all of it: $log)" >&2
    exit 1
}

# answers ADDRESS: whether a web server there is healthy; uses no proxy.
answers() { curl -fs --noproxy '*' -m 5 "$1/health"; }

# refuses_strangers ADDRESS: ends the server that was started last unless it asks for the token.
refuses_strangers() {
    local code
    code=$(curl -s --noproxy '*' -m 30 -o /dev/null -w '%{http_code}' "$1/version")
    if [ "$code" = 401 ]; then return; fi
    kill -- "-$!" 2> /dev/null || kill $!
    echo "error: MLflow at $1 lets in whoever asks (code $code): it has been stopped" >&2
    exit 1
}
