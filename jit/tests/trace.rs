//! The log of what is run, with compiled code: it names each block, in order, as it does when everything is
//! interpreted.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::state::{Activity, gpr};
use mynah_cpu::trace::{EVERY_BLOCK, EXEC, TRANSLATOR, Trace};
use mynah_cpu::{Cpu, Exit};
use mynah_jit::tier::{Engine, Inside, Options, Sink, Translating};
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(b);
        Ok(b.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Loops within loops, a call in the inner one, then HLT.
fn loops(cpu: &Cpu) {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut top, mut inner, mut f) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ebp, 12).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(ecx, 5).unwrap();
    a.set_label(&mut inner).unwrap();
    a.call(f).unwrap();
    a.dec(ecx).unwrap();
    a.jne(inner).unwrap();
    a.dec(ebp).unwrap();
    a.jne(top).unwrap();
    a.hlt().unwrap();
    a.set_label(&mut f).unwrap();
    a.add(eax, ecx).unwrap();
    a.ret().unwrap();
    cpu.mem.write(CODE, &a.assemble(CODE).unwrap());
}

/// What `exec` says of a run: for each line the address, and whether it was of compiled code.
fn blocks(translated: bool, items: u32) -> Vec<(String, bool)> {
    let mut cpu = machine(64);
    loops(&cpu);
    if translated {
        cpu.set_tier(Box::new(Translating::at_once(cpu.events.clone()).unwrap()), 3);
    }
    let log = Log::default();
    cpu.set_trace(Arc::new(Trace::new(items, Vec::new(), Box::new(log.clone()))));
    assert_eq!(cpu.run(), Exit::Halt);
    let line = |l: &str| {
        let (host, rest) = l.strip_prefix("Trace 0: ").unwrap().split_once(" [").unwrap();
        (rest.split('/').nth(1).unwrap().to_owned(), host != "0x0")
    };
    log.text().lines().map(line).collect()
}

#[test]
fn with_nochain_no_block_is_missed_and_without_it_few_are_logged() {
    let interpreted: Vec<String> = blocks(false, EXEC | EVERY_BLOCK).into_iter().map(|b| b.0).collect();
    // Each turn of the inner loop is three blocks: the call, the function, what follows the call.
    assert!(interpreted.len() > 12 * 5 * 3);
    let translated = blocks(true, EXEC | EVERY_BLOCK);
    assert!(translated.iter().filter(|b| b.1).count() > 12 * 5 * 2, "most blocks are compiled by then");
    // What compiled code leaves to the interpreter is entered once more, by itself.
    let mut all: Vec<String> = translated.into_iter().map(|b| b.0).collect();
    all.dedup();
    assert_eq!(all, interpreted);
    assert!(blocks(true, EXEC).len() < interpreted.len() / 4);
}

#[test]
fn code_is_shown_with_the_guest_instructions_that_it_was_made_from() {
    let log = Log::default();
    let trace = Arc::new(Trace::new(TRANSLATOR, vec![(CODE, CODE + 0xfff)], Box::new(log.clone())));
    let sink = |t: &Arc<Trace>| {
        let t = t.clone();
        Some(Arc::new(move |lin: u64, text: &str| t.put_at(lin, text)) as Sink)
    };
    let mut cpu = machine(64);
    loops(&cpu);
    let inside = Inside { ir: sink(&trace), asm: sink(&trace), ..Inside::default() };
    let engine = Engine::new(&cpu.model, Options { inside, ..Options::default() }).unwrap();
    let tier = Translating::new(&engine, cpu.events.clone()).unwrap();
    let counters = tier.counters();
    cpu.set_tier(Box::new(tier), 3);
    // The compiler works beside it: run until it is done.
    while counters.installed.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        cpu.state.gpr[gpr::RIP] = CODE;
        cpu.state.activity = Activity::Running;
        cpu.run();
    }
    let text = log.text();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("'{what}' is not in\n{text}"));
    // A block of the baseline comes first, if the host has one, then a region: Cranelift's form of it, with marks, and
    // what became of that.
    let has_baseline = cfg!(target_arch = "x86_64");
    assert_eq!(at("OUT: [size=") < at("OP: guest "), has_baseline, "{text}");
    assert_eq!(at("  -- guest 0x200") < at("OP: guest "), has_baseline, "{text}");
    assert!(at("\n@200") > at("OP: guest "), "{text}");
    let region = text[at("OP: guest ")..].split_whitespace().nth(2).unwrap();
    let behind = &text[at("OP: guest ")..];
    let out = behind
        .find(&format!("] guest {region}\n"))
        .unwrap_or_else(|| panic!("no code for {region} in\n{text}"));
    assert!(behind[out..].contains("  -- guest 0x200"), "{text}");
}
