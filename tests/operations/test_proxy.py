"""The TLS proxies of the cluster, run for real: a job goes through both; wrong certificates do not."""
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import DEPLOY, EXAMPLES, Processes, cli, free_ports, http_get, start_service, tool, tool_environment, wait_for
from overlays import containers, pod_templates

BASE = DEPLOY / "kubernetes/base"


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=30)


def issue(authorities, to, subject, ca="ca"):
    """A certificate with its key and the CA's in the folder `to`."""
    to.mkdir()
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
            "-keyout", to / "tls.crt.key", "-out", to / "csr")
    (to / "ext").write_text("subjectAltName=DNS:quantryd,DNS:quantryd.quantry.svc\n" if subject == "/CN=quantryd" else "extendedKeyUsage=clientAuth\n")
    openssl("x509", "-req", "-days", 2, "-in", to / "csr", "-CA", authorities / f"{ca}.crt", "-CAkey", authorities / f"{ca}.key", "-CAcreateserial",
            "-extfile", to / "ext", "-out", to / "tls.crt")
    (to / "ca.crt").write_bytes((authorities / "ca.crt").read_bytes())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and folders as the Secrets' volumes look: server, worker, client, and stranger of another CA."""
    folder = tmp_path_factory.mktemp("tls")
    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2, "-subj", f"/CN={ca}",
                "-keyout", folder / f"{ca}.key", "-out", folder / f"{ca}.crt")
    for name, subject, ca in (("server", "/CN=quantryd", "ca"), ("worker", "/CN=quantry-worker/OU=worker", "ca"),
                              ("client", "/CN=quantry-client/OU=client", "ca"), ("stranger", "/CN=x/OU=worker", "other")):
        issue(folder, folder / name, subject, ca)
    return folder


def write_config(name, config, tls, folder, addresses):
    """A file of the cluster with other addresses instead of its own, which HAProxy takes without a warning."""
    text = (BASE / config).read_text().replace("/tls/", f"{tls}/")
    for old, new in addresses.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.cfg"
    path.write_text(text)
    checked = subprocess.run([tool("haproxy"), "-c", "-f", path], capture_output=True, text=True, timeout=20, env=tool_environment())
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr, checked.stderr
    return path


def start_proxy(processes, name, config, tls, folder, addresses):
    processes.start(name, [tool("haproxy"), "-W", "-db", "-f", write_config(name, config, tls, folder, addresses)], env=tool_environment())


@pytest.fixture(scope="module")
def cluster(binaries, tmp_path_factory, certificates):
    """quantryd with its proxy; addresses of the proxy's ports by name."""
    folder = tmp_path_factory.mktemp("cluster")
    processes = Processes(folder)
    try:
        yield start_cluster(binaries, folder, processes, certificates)
    finally:
        processes.stop()


def start_cluster(binaries, folder, processes, certificates):
    ports = dict(zip(("tenant", "worker", "admin", "worker_admin", "exporter"), free_ports(5)))
    server = start_service(processes, binaries, folder, worker=False)
    start_proxy(processes, "server-proxy", "server-proxy.cfg", certificates / "server", folder, {
        "127.0.0.1:7070": server["tenant"], "127.0.0.1:7071": server["worker"], "127.0.0.1:7072": server["admin"],
        "127.0.0.1:7073": server["worker_admin"], ":8470": f"127.0.0.1:{ports['tenant']}", ":8471": f"127.0.0.1:{ports['worker']}",
        ":8072": f"127.0.0.1:{ports['admin']}", ":8073": f"127.0.0.1:{ports['worker_admin']}", ":8074": f"127.0.0.1:{ports['exporter']}"})
    wait_for(lambda: http_get(f"http://127.0.0.1:{ports['admin']}/readyz"), 20, "the proxy:\n" + processes.log("server-proxy"))
    return {name: f"127.0.0.1:{port}" for name, port in ports.items()}


def start_client(processes, folder, name, tls, target):
    """A worker pod's proxy in front of `target`: (address of its loopback end, admin end, the worker's admin address)."""
    local, admin, worker_admin = (f"127.0.0.1:{port}" for port in free_ports(3))
    start_proxy(processes, name, "worker-proxy.cfg", tls, folder, {
        "bind 127.0.0.1:7071": f"bind {local}", "quantryd:8471": target, "127.0.0.1:7073": worker_admin, "bind :8073": f"bind {admin}"})
    return local, admin, worker_admin


def project(volume, version, source):
    """What the kubelet does to a Secret's volume: a new folder, then the link that its files go through."""
    shutil.copytree(source, volume / f"..{version}")
    (volume / "..new").symlink_to(f"..{version}")
    (volume / "..new").rename(volume / "..data")
    for name in ("tls.crt", "tls.crt.key", "ca.crt"):
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")


@pytest.mark.parametrize("pod, config, listeners", [("quantryd", "server-proxy.cfg", (":8470", ":8471", ":8072", ":8073", ":8074")),
                                                    ("quantry-worker", "worker-proxy.cfg", ("127.0.0.1:7071", ":8073"))])
def test_a_renewed_certificate_starts_the_proxy_again(processes, tmp_path, certificates, pod, config, listeners):
    """The container's own commands: alive with the certificate it read, not alive with a newer one, alive when started again."""
    (proxy,) = (c for c in containers(dict(pod_templates("distributed"))[pod]) if c["name"] == "proxy")
    (tmp_path / "run").mkdir()
    (tmp_path / "tls").mkdir()
    project(tmp_path / "tls", 1, certificates / "server")
    ports = free_ports(len(listeners))
    written = write_config("proxy", config, tmp_path / "tls", tmp_path, {f"bind {old}": f"bind 127.0.0.1:{port}" for old, port in zip(listeners, ports)}
                           | ({} if pod == "quantryd" else {"quantryd:8471": "127.0.0.1:1"}))
    paths = {"/run/proxy": f"{tmp_path}/run", "/tls/": f"{tmp_path}/tls/", "/etc/quantry-proxy/server.cfg": written, "/etc/quantry-proxy/worker.cfg": written,
             "exec haproxy": f"exec {tool('haproxy')}"}

    def here(command):
        for old, new in paths.items():
            command = [part.replace(old, str(new)) for part in command]
        return command

    def start():
        started = processes.start("proxy", here(proxy["command"]), env=tool_environment())
        wait_for(lambda: socket.create_connection(("127.0.0.1", ports[0]), timeout=5).close() is None, 20, "the proxy")
        return started

    def alive():
        return subprocess.run(here(proxy["livenessProbe"]["exec"]["command"]), timeout=10).returncode == 0

    running = start()
    assert alive()
    issue(certificates, tmp_path / "renewed", "/CN=quantryd")
    project(tmp_path / "tls", 2, tmp_path / "renewed")
    assert not alive()
    running.terminate()
    running.wait(timeout=20)
    start()
    assert alive()


def test_libc_alone_resolves_the_server():
    """`resolvers` of HAProxy know no search list: a cluster's DNS refuses them the short name, and `hold nx` later the server is gone."""
    server = next(line.split() for line in (BASE / "worker-proxy.cfg").read_text().splitlines() if "quantryd:8471" in line)
    assert "resolvers" not in server and "init-addr" not in server, "without init-addr a name that libc does not know ends HAProxy, which starts again"


def test_a_job_goes_through_both_proxies(binaries, tmp_path, processes, cluster, certificates):
    server_end, admin_end, worker_admin = start_client(processes, tmp_path, "worker-proxy", certificates / "worker", cluster["worker"])
    tenant_end, _, _ = start_client(processes, tmp_path, "client-proxy", certificates / "client", cluster["tenant"])
    processes.start("far-worker", [binaries / "quantry-worker", f"--server={server_end}", f"--work-dir={tmp_path}/far", "--worker-id=far",
                                   f"--admin-listen={worker_admin}", "--threads=1", "--device=cpu"])
    wait_for(lambda: http_get(f"http://{admin_end}/readyz"), 20, "the worker through its proxy")
    cli(binaries, tenant_end, "submit", EXAMPLES / "stories260k", "--id", "far-job", "--method", "rtn", "--group-size", -1,
        "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 4, "--calibration-length", 64, "--wait")
    cli(binaries, tenant_end, "pull", "far-job", tmp_path / "pulled")
    assert "job=tenants/default/quantizationJobs/far-job" in processes.log("far-worker")
    assert "quantry_worker_slots 1" in http_get(f"http://{admin_end}/metrics")


def answers(address, certificates, who):
    """Whether HTTP/2's preface is answered; False when the connection ends instead."""
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    context.set_alpn_protocols(["h2"])
    if who:
        context.load_cert_chain(certificates / who / "tls.crt", certificates / who / "tls.crt.key")
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=15) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="quantryd") as connection:
                assert connection.selected_alpn_protocol() == "h2"
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                return len(connection.recv(9)) > 0
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.mark.parametrize("who,tenant,worker", [("client", True, False), ("worker", True, True), ("stranger", False, False), (None, False, False)])
def test_who_gets_in(cluster, certificates, who, tenant, worker):
    assert answers(cluster["tenant"], certificates, who) == tenant
    assert answers(cluster["worker"], certificates, who) == worker


def test_admin_port_is_read_only(cluster):
    for path in ("/metrics", "/livez", "/readyz"):
        assert http_get(f"http://{cluster['admin']}{path}")
    by_name = urllib.request.Request(f"http://{cluster['admin']}/livez", headers={"Host": "quantryd.quantry.svc:8072"})
    assert urllib.request.urlopen(by_name, timeout=10).status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        http_get(f"http://{cluster['admin']}/anything")
    assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as absent:  # nobody exports there in this test
        http_get(f"http://{cluster['exporter']}/metrics")
    assert absent.value.code == 503
