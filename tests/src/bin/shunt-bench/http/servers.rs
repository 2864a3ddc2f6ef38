//! Programs that are told their ports: nginx as what is behind, and the peers that are configured in their own words.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::wait::eventually;
use shunt_tests::{Lab, Place, Process, ports};

/// How long one may take to listen.
const READY: Duration = Duration::from_secs(10);
/// Of nginx's files that a short answer never needs.
const SPOOLS: [&str; 5] = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];

/// One process that listens for either protocol. It ends with this.
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) http1: SocketAddr,
    pub(super) http2: SocketAddr,
}

impl Server {
    fn start(
        lab: &Lab,
        program: &str,
        text: impl Fn(&Path, [SocketAddr; 2]) -> String,
        arguments: &[&str],
    ) -> Result<Self> {
        let [http1, http2] = [ports::free()?, ports::free()?];
        let dir = directory(lab, program)?;
        let file = dir.join("config");
        fs::write(&file, text(&dir, [http1, http2]))?;
        let spawn = lab.program(program, &Place::default())?.dir(&dir).args(arguments).arg(&file);
        let mut server = Self { process: spawn.spawn()?, http1, http2 };
        eventually(program, READY, || {
            let process = &mut server.process;
            ensure!(process.exited()?.is_none(), "{program} has ended: {}", process.stderr());
            Ok(TcpStream::connect(http2)?)
        })?;
        Ok(server)
    }
}

/// Answers with a short text, by as many requests on a connection as there are.
pub(super) fn backend(lab: &Lab) -> Result<Server> {
    nginx(lab, |_| ("access_log off;".to_owned(), "return 200 \"hello\\n\";".to_owned()))
}

/// nginx as a proxy, with what [`super::bootstrap`] has: Envoy's line for each request, a request's id, time-outs, and
/// connections that are kept.
pub(super) fn nginx_proxy(lab: &Lab, to: SocketAddr) -> Result<Server> {
    nginx(lab, |dir| {
        let http = format!(
            "log_format envoy '[$time_iso8601] \"$request\" $status - $request_length $bytes_sent $request_time \
               $upstream_response_time \"$http_x_forwarded_for\" \"$http_user_agent\" \"$request_id\" \"$http_host\" \
               \"$upstream_addr\"';\n\
             access_log {log} envoy buffer=64k flush=1s;\n\
             keepalive_timeout 300s; client_header_timeout 15s; client_body_timeout 60s;\n\
             upstream nginx {{ server {to}; keepalive 4096; keepalive_requests 1000000000; }}",
            log = dir.join("access.log").display()
        );
        let pass = "proxy_pass http://nginx; proxy_http_version 1.1; proxy_read_timeout 5s; \
             proxy_set_header Connection \"\"; proxy_set_header Host $http_host; \
             proxy_set_header X-Request-Id $request_id; proxy_set_header X-Forwarded-Proto $scheme; \
             proxy_set_header X-Envoy-Expected-Rq-Timeout-Ms 5000;";
        (http, pass.to_owned())
    })
}

/// What is in `http` and in the only location.
fn nginx(lab: &Lab, own: impl Fn(&Path) -> (String, String)) -> Result<Server> {
    let text = |dir: &Path, [http1, http2]: [SocketAddr; 2]| {
        let (http, location) = own(dir);
        let spools: String =
            SPOOLS.iter().map(|name| format!("{name}_temp_path {}/{name};\n", dir.display())).collect();
        format!(
            "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 16384; }}\n\
             http {{ keepalive_requests 1000000000;\n{spools}{http}\n\
               server {{ listen {http1} backlog=4096; listen {http2} http2 backlog=4096;\n\
               location / {{ {location} }} }} }}\n",
            dir = dir.display()
        )
    };
    Server::start(lab, "nginx", text, &["-c"])
}

/// As [`nginx_proxy`]. Its lines go to its standard output, which is a file here.
pub(super) fn haproxy(lab: &Lab, to: SocketAddr) -> Result<Server> {
    let text = |_: &Path, [http1, http2]: [SocketAddr; 2]| {
        format!(
            "global\n  nbthread 1\n  maxconn 8192\n  log stdout format raw local0\n\
             defaults\n  mode http\n  log global\n  timeout client 300s\n  timeout server 5s\n  timeout connect 5s\n  \
               timeout http-request 15s\n  timeout http-keep-alive 300s\n  http-reuse always\n  option forwardfor\n\
             frontend in\n  bind {http1}\n  bind {http2} proto h2\n  unique-id-format %[uuid()]\n  \
               unique-id-header x-request-id\n  http-request set-header x-forwarded-proto http\n  \
               http-request set-header x-envoy-expected-rq-timeout-ms 5000\n  \
               http-request capture req.hdr(user-agent) len 64\n  http-request capture req.hdr(host) len 64\n  \
               log-format '[%T] \"%HM %HP %HV\" %ST %tsc %U %B %Ta %Tr \"%ci\" \"%[capture.req.hdr(0)]\" \"%ID\" \
               \"%[capture.req.hdr(1)]\" \"%si:%sp\"'\n  default_backend nginx\n\
             backend nginx\n  server nginx {to} pool-max-conn 4096\n"
        )
    };
    Server::start(lab, "haproxy", text, &["-db", "-f"])
}

/// A directory that no other server has.
fn directory(lab: &Lab, program: &str) -> Result<PathBuf> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let dir = lab.dir().join(format!("{program}-{}", MADE.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&dir)?;
    Ok(dir)
}
