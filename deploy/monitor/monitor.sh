#!/usr/bin/env bash
# `make monitor`: Prometheus with our rules, watching runs/; Alertmanager and Grafana too, where they are installed.
# Everything listens on loopback. State and logs are in runs/.monitor; Ctrl-C ends it.
#   RUNS=folder of runs (runs)  PORT=Prometheus' (9090)  ALERTMANAGER_PORT=(9093)  GRAFANA_PORT=(3000)
set -euo pipefail
cd "$(dirname "$0")/../.."

RUNS=${RUNS:-runs} PORT=${PORT:-9090} ALERTMANAGER_PORT=${ALERTMANAGER_PORT:-9093} GRAFANA_PORT=${GRAFANA_PORT:-3000}
state=runs/.monitor
children=()

fail() {
  echo "error: $1" >&2
  exit 2
}
first_of() { # the first of these programs that is installed; nothing where none is
  local name
  for name; do command -v "$name" && return; done
  return 0
}
answers() { (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }
start() { # start NAME COMMAND…: in the background, its words into NAME.log
  local name=$1
  shift
  "$@" > "$state/$name.log" 2>&1 &
  children+=($!)
}
await() { # await NAME PID PORT
  until answers "$3"; do
    kill -0 "$2" 2> /dev/null || fail "$1 has ended → its last words: $(tail -n 1 "$state/$1.log")"
    sleep 0.1
  done
}
end() {
  trap - EXIT INT TERM
  kill "${children[@]}" 2> /dev/null || true
  wait
}

prometheus=$(first_of prometheus)
[ -n "$prometheus" ] || fail "prometheus is not installed → it does the watching → apt-get install prometheus, or docker/compose.yaml"
for port in "$PORT" "$ALERTMANAGER_PORT" "$GRAFANA_PORT"; do
  ! answers "$port" || fail "port $port is taken → each program needs one for itself → make monitor PORT=… ALERTMANAGER_PORT=… GRAFANA_PORT=…"
done
mkdir -p "$state"/{targets,alertmanagers,prometheus,alertmanager,grafana}
trap end EXIT
trap 'exit 0' INT TERM

deploy/monitor/targets.sh "$RUNS" "$state/targets" 0 # what runs now is watched from the first scrape on
start targets deploy/monitor/targets.sh "$RUNS" "$state/targets"

rm -f "$state"/alertmanagers/*.json
said="alerts go nowhere: Alertmanager is not installed"
alertmanager=$(first_of alertmanager prometheus-alertmanager)
if [ -n "$alertmanager" ]; then
  start alertmanager "$alertmanager" --config.file=deploy/alertmanager/alertmanager.yml \
    --storage.path="$state/alertmanager" --web.listen-address="127.0.0.1:$ALERTMANAGER_PORT" --cluster.listen-address=
  await alertmanager "${children[-1]}" "$ALERTMANAGER_PORT"
  echo "[{\"targets\": [\"127.0.0.1:$ALERTMANAGER_PORT\"]}]" > "$state/alertmanagers/local.json"
  said="Alertmanager http://127.0.0.1:$ALERTMANAGER_PORT"
fi

start prometheus "$prometheus" --config.file=deploy/prometheus/prometheus.yml \
  --storage.tsdb.path="$state/prometheus" --web.listen-address="127.0.0.1:$PORT"
await prometheus "${children[-1]}" "$PORT"

grafana=$(first_of grafana-server grafana)
if [ -n "$grafana" ]; then
  [ "$(basename "$grafana")" = grafana ] && grafana="$grafana server"
  export PROMETHEUS_URL="http://127.0.0.1:$PORT" DASHBOARDS="$PWD/deploy/grafana/dashboards"
  export GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=$GRAFANA_PORT GF_AUTH_ANONYMOUS_ENABLED=true
  export GF_PATHS_PROVISIONING="$PWD/deploy/grafana/provisioning" GF_PATHS_DATA="$PWD/$state/grafana"
  export GF_PATHS_LOGS="$PWD/$state/grafana" GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false
  # shellcheck disable=SC2086 # two words
  start grafana $grafana --homepath "${GRAFANA_HOME:-/usr/share/grafana}"
  await grafana "${children[-1]}" "$GRAFANA_PORT"
  said+=" · dashboards http://127.0.0.1:$GRAFANA_PORT/dashboards"
else
  said+=" · dashboards need Grafana, which is not installed"
fi

echo "watching $RUNS/ at http://127.0.0.1:$PORT (alerts: /alerts) · $said · Ctrl-C ends it"
wait -n "${children[@]}" || true
fail "one of the programs has ended → see $state/*.log"
