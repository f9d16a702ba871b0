"""Real Prometheus and vmagent scrape node_exporter and remote-write to us; then the same PromQL is asked of Prometheus and of us.

    oracle.py [--seconds 120]

Prometheus and vmagent each put a label `agent` on what they send. Both Prometheus (its own storage) and Fletch are asked at now − 60 s; label sets must be
the same and values within 1e-9 relative. vmagent's series exist with us only, so every selector here names agent="prometheus" or is asked of us alone.
"""

import argparse
import json
import math
import sys
import time

import fletchtest as ft

# `$` stands for the selector of our own agent's series.
QUERIES = [
    'node_load1{$}', 'node_memory_MemAvailable_bytes{$} / node_memory_MemTotal_bytes{$}', 'sum(node_memory_MemFree_bytes{$})',
    'rate(node_cpu_seconds_total{$}[30s])', 'sum by (mode) (rate(node_cpu_seconds_total{$}[30s]))', 'sum without (cpu, mode) (rate(node_cpu_seconds_total{$}[30s]))',
    'avg by (cpu) (rate(node_cpu_seconds_total{$,mode!="idle"}[30s]))', 'irate(node_cpu_seconds_total{$}[30s])', 'increase(node_context_switches_total{$}[30s])',
    'delta(node_load1{$}[30s])', 'deriv(node_load1{$}[30s])', 'changes(node_load1{$}[40s])', 'resets(node_cpu_seconds_total{$}[40s])',
    'max_over_time(node_load1{$}[30s])', 'min_over_time(node_load1{$}[30s])', 'avg_over_time(node_load1{$}[30s])', 'sum_over_time(node_load1{$}[30s])',
    'count_over_time(node_load1{$}[30s])', 'stddev_over_time(node_load1{$}[30s])', 'quantile_over_time(0.9, node_load1{$}[30s])', 'last_over_time(node_load1{$}[30s])',
    'quantile by (mode) (0.75, node_cpu_seconds_total{$})', 'topk(3, rate(node_cpu_seconds_total{$}[30s]))', 'bottomk(2, node_cpu_seconds_total{$})',
    'count by (mode) (node_cpu_seconds_total{$})', 'count_values("v", node_cpu_online{$} or up{$})', 'stddev by (mode) (node_cpu_seconds_total{$})',
    'histogram_quantile(0.9, sum by (le) (rate(prometheus_http_request_duration_seconds_bucket{$}[30s])))',
    'histogram_quantile(0.5, rate(prometheus_http_request_duration_seconds_bucket{$}[40s]))',
    'node_filesystem_avail_bytes{$} * on (device, mountpoint) group_left (fstype) node_filesystem_readonly{$}',
    'node_network_receive_bytes_total{$} and on (device) node_network_transmit_bytes_total{$}', 'node_load1{$} > bool 0.5',
    'node_cpu_seconds_total{$,mode=~"user|system"} unless node_cpu_seconds_total{$,mode="user"}', 'absent(nonexistent_metric{$})',
    'label_replace(up{$}, "host", "$1", "instance", "(.*):.*")', 'label_join(up{$}, "all", "-", "job", "instance")', 'sort_desc(node_load5{$})',
    'max_over_time(rate(node_cpu_seconds_total{$,mode="user"}[20s])[30s:5s])', 'avg_over_time(sum(rate(node_cpu_seconds_total{$}[20s]))[30s:10s])',
    'clamp_max(node_load1{$}, 1)', 'predict_linear(node_memory_MemFree_bytes{$}[40s], 60)', 'scalar(sum(up{$})) + vector(1)', 'time() - node_boot_time_seconds{$}',
    'floor(node_time_seconds{$} offset 10s)', 'node_load1{$} @ end()',
]


def start_peers(folder, server):
    exporter_port, prometheus_port, vmagent_port = ft.free_port(), ft.free_port(), ft.free_port()
    ft.spawn([ft.service("prometheus-node-exporter", "prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{exporter_port}"], folder / "exporter.log")
    jobs = f"""
scrape_configs:
- job_name: node
  static_configs: [{{targets: ['127.0.0.1:{exporter_port}']}}]
- job_name: prometheus
  static_configs: [{{targets: ['127.0.0.1:{prometheus_port}']}}]
"""
    conf = folder / "prometheus.yml"
    conf.write_text(f"global: {{scrape_interval: 2s, external_labels: {{agent: prometheus}}}}\n"
                    f"remote_write: [{{url: '{server.url}/api/v1/write', queue_config: {{batch_send_deadline: 1s}}}}]\n{jobs}")
    ft.spawn([ft.service("prometheus", "prometheus"), f"--config.file={conf}", f"--storage.tsdb.path={folder}/prometheus",
              f"--web.listen-address=127.0.0.1:{prometheus_port}"], folder / "prometheus.log")
    conf = folder / "vmagent.yml"
    conf.write_text(f"global: {{scrape_interval: 2s, external_labels: {{agent: vmagent}}}}\n{jobs}")
    ft.spawn([ft.service("victoria-metrics", "vmagent"), f"-promscrape.config={conf}", f"-remoteWrite.url={server.url}/api/v1/write", "-remoteWrite.forcePromProto",
              f"-remoteWrite.tmpDataPath={folder}/vmagent", f"-httpListenAddr=127.0.0.1:{vmagent_port}"], folder / "vmagent.log")
    return f"http://127.0.0.1:{prometheus_port}"


def as_map(result, drop):
    if result["resultType"] == "scalar":
        return {(): float(result["result"][1])}
    return {tuple(sorted((k, v) for k, v in r["metric"].items() if k != drop)): float(r["value"][1]) for r in result["result"]}


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-9 * max(abs(a), abs(b))


def compare(query, theirs, ours):
    problems = [f"only with {who}: {dict(key)}" for who, keys in (("prometheus", theirs.keys() - ours.keys()), ("fletch", ours.keys() - theirs.keys())) for key in keys]
    problems += [f"{dict(k)}: prometheus {theirs[k]!r}, fletch {ours[k]!r}" for k in theirs.keys() & ours.keys() if not same(theirs[k], ours[k])]
    return problems


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=int, default=120)
    seconds = arguments.parse_args().seconds
    folder = ft.scratch("oracle")
    server = ft.Fletch(folder / "data").start()
    oracle = start_peers(folder, server)
    time.sleep(seconds)
    at, bad, series = round(time.time() - 60, 3), 0, 0
    for query in QUERIES:
        # Prometheus does not put external labels on what it stores itself.
        theirs = as_map(ft.prometheus(oracle, "query", query=query.replace("{$,", "{").replace("{$}", ""), time=at), "agent")
        ours = as_map(server.query(query.replace("$,", 'agent="prometheus",').replace("{$}", '{agent="prometheus"}'), at=at), "agent")
        problems = compare(query, theirs, ours)
        series += len(theirs)
        bad += bool(problems)
        print(f"{'DIFFERS' if problems else 'same':8} {len(theirs):4} series  {query}")
        for line in problems[:5]:
            print("         ", line)
    from_vmagent = server.query('count({agent="vmagent"})', at=at)["result"]
    print(f"{len(QUERIES) - bad} of {len(QUERIES)} queries the same over {series} series; vmagent's series with us: {from_vmagent[0]['value'][1] if from_vmagent else 0}")
    sys.exit(1 if bad or not from_vmagent else 0)


if __name__ == "__main__":
    main()
