#!/usr/bin/env bash
# A real Apache Kafka broker (KRaft, one node, loopback only) for the tests. Needs Java 17 or later and Maven; no installation.
#
#   kafka.sh start DIR PORT         state below DIR; PORT and PORT+1 must be free. Returns when the broker answers
#   kafka.sh stop DIR               ends it and waits until it is gone; its data stays for the next start
#   kafka.sh kill DIR               the same with SIGKILL: a crash
#   kafka.sh tool DIR CLASS ARGS…   runs a tool of Kafka, e.g. org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.0.1:PORT --list
#
# The jars are kept in $FLETCH_KAFKA_JARS (default: fletch-services/kafka in the user's cache folder).
set -euo pipefail

home=$(cd "$(dirname "$0")" && pwd)
usage() {
  sed -n '4,7s/^# *//p' "$0" >&2
  exit 2
}
[ $# -ge 2 ] || usage
command=$1
state=$(realpath -m "$2")
shift 2
jars=${FLETCH_KAFKA_JARS:-${XDG_CACHE_HOME:-$HOME/.cache}/fletch-services/kafka}

fetch() {
  [ -f "$jars/.whole" ] && return
  command -v mvn > /dev/null || { echo "kafka.sh: needs Maven (mvn) to fetch Kafka's jars" >&2; exit 1; }
  mkdir -p "$jars"
  mvn --quiet --batch-mode --file "$home/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars" >&2
  touch "$jars/.whole"
}

kafka_java() { java "-Dlog4j2.configurationFile=$state/log4j2.yaml" -cp "$jars/*" "$@"; }

configure() {
  local port=$1 quorum=$(($1 + 1))
  mkdir -p "$state"
  printf '%s\n' \
    "node.id=1" "process.roles=broker,controller" "log.dirs=$state/data" \
    "listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$quorum" "advertised.listeners=PLAINTEXT://127.0.0.1:$port" \
    "controller.listener.names=CONTROLLER" "controller.quorum.voters=1@127.0.0.1:$quorum" "inter.broker.listener.name=PLAINTEXT" \
    "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT" \
    "group.initial.rebalance.delay.ms=0" "num.partitions=1" \
    "offsets.topic.replication.factor=1" "offsets.topic.num.partitions=2" \
    "transaction.state.log.replication.factor=1" "transaction.state.log.min.isr=1" "transaction.state.log.num.partitions=2" \
    "share.coordinator.state.topic.replication.factor=1" "share.coordinator.state.topic.min.isr=1" \
    > "$state/server.properties"
  printf '%s\n' 'Configuration:' '  Appenders:' '    Console:' '      name: out' '      PatternLayout: { pattern: "%d %p %c: %m%n" }' \
    '  Loggers:' '    Root:' '      level: warn' '      AppenderRef: { ref: out }' > "$state/log4j2.yaml"
}

alive() { [ -f "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2> /dev/null; }

answers() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

start() {
  local port=${1:?which port?}
  if alive; then
    echo "kafka.sh: already running, pid $(cat "$state/pid")"
    return
  fi
  if answers "$port"; then
    echo "kafka.sh: something else already listens on 127.0.0.1:$port" >&2
    exit 1
  fi
  fetch
  configure "$port"
  if [ ! -f "$state/data/meta.properties" ]; then
    local cluster
    cluster=$(kafka_java kafka.tools.StorageTool random-uuid 2> /dev/null | tail -n 1)
    kafka_java kafka.tools.StorageTool format --cluster-id "$cluster" --config "$state/server.properties" > "$state/format.log" 2>&1
  fi
  # Not through the function: its subshell would get the pid, and the signals, instead of the broker.
  java "-Dlog4j2.configurationFile=$state/log4j2.yaml" -cp "$jars/*" -Xms128m -Xmx768m kafka.Kafka "$state/server.properties" \
    > "$state/broker.log" 2>&1 < /dev/null &
  echo $! > "$state/pid"
  local tries=0
  until answers "$port"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 240 ] || ! alive; then
      echo "kafka.sh: the broker does not answer on 127.0.0.1:$port; its log ends so:" >&2
      tail -n 20 "$state/broker.log" >&2
      exit 1
    fi
    sleep 0.25
  done
  echo "kafka.sh: 127.0.0.1:$port answers (pid $(cat "$state/pid"), log $state/broker.log)"
}

end() {
  local signal=$1
  alive || { rm -f "$state/pid"; return; }
  kill "-$signal" "$(cat "$state/pid")"
  local tries=0
  while alive; do
    tries=$((tries + 1))
    [ "$tries" -le 240 ] || { echo "kafka.sh: pid $(cat "$state/pid") does not end" >&2; exit 1; }
    sleep 0.25
  done
  rm -f "$state/pid"
}

case $command in
  start) start "$@" ;;
  stop) end TERM ;;
  kill) end KILL ;;
  tool)
    fetch
    [ -f "$state/log4j2.yaml" ] || configure 29092
    kafka_java -Xmx256m "$@"
    ;;
  *) usage ;;
esac
