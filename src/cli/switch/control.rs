//! The control socket: whoever writes `stats` and a line's end has the switch's statistics, JSON on one line.
use super::super::Error;
use super::Mode;
use super::fabric::Fabric;
use mynah_net::switch::{Bucket, Cause, Count, Mirror, Passed, Port, Switch};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one who asks may take for all of it.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest question.
const LONGEST: usize = 4096;
/// The longest answer that is read.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Answers, on a thread of its own, one after the other.
pub fn serve(listener: UnixListener, fabric: Arc<Fabric>, mode: Mode) -> std::io::Result<()> {
    let work = move || {
        for client in listener.incoming() {
            let Ok(client) = client else {
                // Out of descriptors: it is better in a while.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            // One who does not wait for the answer has none.
            let _ = answer(&client, &fabric, mode);
        }
    };
    std::thread::Builder::new().name("mynah-control".into()).spawn(work).map(drop)
}

fn answer(client: &UnixStream, fabric: &Fabric, mode: Mode) -> std::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let left = || match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(std::io::Error::from(ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    let (mut line, mut chunk) = (Vec::new(), [0; 256]);
    while !line.contains(&b'\n') && line.len() < LONGEST {
        client.set_read_timeout(left()?)?;
        match (&*client).read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => line.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let line = String::from_utf8_lossy(&line);
    let said = match line.trim() {
        "stats" => stats(fabric, mode),
        other => json!({ "error": format!("'{other}': unknown; there is 'stats'") }),
    };
    let text = format!("{said}\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        client.set_write_timeout(left()?)?;
        match (&*client).write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Asks the switch whose control socket this is.
pub fn ask(path: &Path) -> anyhow::Result<Value> {
    let at = |why: String| Error::new(format!("{}: {why}", path.display()));
    let mut socket = UnixStream::connect(path).map_err(|e| {
        at(format!("{e}: a switch answers there if it was started with --control {}", path.display()))
    })?;
    let mut answer = Vec::new();
    let asked = socket
        .write_all(b"stats\n")
        .and_then(|()| socket.set_read_timeout(Some(2 * PATIENCE)))
        .and_then(|()| socket.take(LONGEST_ANSWER).read_to_end(&mut answer));
    asked.map_err(|e| at(e.to_string()))?;
    let value: Value =
        serde_json::from_slice(&answer).map_err(|_| at("it is no switch's control socket".into()))?;
    match value.get("error").and_then(Value::as_str) {
        Some(why) => Err(at(why.into()).into()),
        None => Ok(value),
    }
}

/// All that is known.
fn stats(fabric: &Fabric, mode: Mode) -> Value {
    let now = fabric.now();
    fabric.with(|switch| {
        switch.age(now);
        let ports: Vec<Value> = switch.ports().iter().map(|p| port(p, now)).collect();
        json!({
            "mode": mode.name(),
            "uptime_ms": millis(now),
            "ports": ports,
            "stations": stations(switch, now),
            "stations_limit": switch.most_stations(),
        })
    })
}

fn port(port: &Port, now: Duration) -> Value {
    let (config, counters) = (&port.config, &port.counters);
    let drops = Cause::ALL.map(|(cause, name)| (name.to_owned(), json!(counters.dropped(cause))));
    let (queued, most) = port.queued();
    let addresses = port.addresses().iter();
    let addresses = addresses.map(|a| {
        json!({ "mac": a.mac.to_string(), "ip": a.ip.to_string(), "age_ms": millis(now.saturating_sub(a.seen)) })
    });
    json!({
        "name": config.name,
        "uplink": config.uplink,
        "connected": port.connected,
        "vlan": config.vlans.untagged,
        "trunk": config.vlans.tagged().collect::<Vec<_>>(),
        "mirror": config.mirror.as_ref().map(|m| match m {
            Mirror::All => "on",
            Mirror::Port(name) => name,
        }),
        "in": count(counters.input),
        "out": count(counters.output),
        "flooded": counters.flooded,
        "unlearned": counters.unlearned,
        "drops": drops.into_iter().collect::<serde_json::Map<_, _>>(),
        "queue": { "octets": queued, "limit": most },
        "limit": port.limits().map(|[input, output]| json!({
            "rate": input.rate(),
            "burst": input.burst(),
            "in": bucket(input),
            "out": bucket(output),
        })),
        "addresses": addresses.collect::<Vec<_>>(),
    })
}

fn count(count: Count) -> Value {
    json!({ "frames": count.frames, "octets": count.octets })
}

fn bucket(bucket: &Bucket) -> Value {
    let Passed { octets, clock, idle } = bucket.passed();
    json!({ "octets": octets, "clock_ns": clock.as_nanos() as u64, "idle_ns": idle.as_nanos() as u64 })
}

fn stations(switch: &Switch, now: Duration) -> Vec<Value> {
    let mut all = switch.stations();
    all.sort_by_key(|s| (s.port, s.vlan, s.mac));
    let name = |port: usize| switch.ports().get(port).map_or("", |p| &p.config.name);
    let of = all.iter().map(|s| {
        let age = millis(now.saturating_sub(s.seen));
        json!({ "mac": s.mac.to_string(), "vlan": s.vlan, "port": name(s.port), "age_ms": age })
    });
    of.collect()
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}
