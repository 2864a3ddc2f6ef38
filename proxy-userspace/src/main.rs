use proxy_userspace::ebpf::*;
use proxy_userspace::sys::netns::Netns;
use std::path::Path;
fn main() {
    check_kernel().unwrap_or_else(|e| {
        let t = e.to_string();
        let f = format!("{e:?}");
        println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
        std::process::exit(1)
    });
    let t = std::time::Instant::now();
    let pins = Pins::open(Path::new("/sys/fs/bpf/shunt-smoke")).unwrap_or_else(|e| {
        let t = e.to_string();
        let f = format!("{e:?}");
        println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
        std::process::exit(1)
    });
    let k = Kernel::open(pins, std::env::args().any(|a| a == "debug")).unwrap_or_else(|e| {
        let t = e.to_string();
        let f = format!("{e:?}");
        println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
        std::process::exit(1)
    });
    println!("open {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let ns = Netns::open(Path::new("/run/netns/smoke")).unwrap_or_else(|e| {
        let t = e.to_string();
        let f = format!("{e:?}");
        println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
        std::process::exit(1)
    });
    k.attach(&Target {
        name: "smoke",
        cgroup: Path::new("/sys/fs/cgroup/unified/smoke"),
        netns: &ns,
        inbound: true,
        hold: true,
    })
    .unwrap_or_else(|e| {
        let t = e.to_string();
        let f = format!("{e:?}");
        println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
        std::process::exit(1)
    });
    println!("attach {:?}", t.elapsed());
    if std::env::args().any(|a| a == "rm") {
        k.detach("smoke", Some(ns.cookie())).unwrap_or_else(|e| {
            let t = e.to_string();
            let f = format!("{e:?}");
            println!("{t}\n...{}", &f[f.len().saturating_sub(3000)..]);
            std::process::exit(1)
        });
        k.pins().remove_all().unwrap();
    }
}
