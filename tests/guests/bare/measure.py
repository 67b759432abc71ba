#!/usr/bin/env python3
"""measure.py PROGRAM MYNAH [RUNS [OPTION...]]: a program of make.sh's natively, started by the translator and handed
over to KVM when it begins, and by the translator alone, in turns; the best of all runs of each.

MYNAH is a release build. Options are added to the guest's: with which -cpu KVM takes it over, the message of a hand-over
that is refused says."""
import statistics
import subprocess
import sys

program, mynah, runs, *options = sys.argv[1:3] + (sys.argv[3:] or ["3"])
guest = [mynah, "run", "-accel", "jit", "-m", "512", "-kernel", program, "-nic", "none", "-display", "none",
         "-serial", "stdio", "-no-reboot", *options]
ways = {"native": [program], "kvm": guest + ["-handoff", "kvm@text:GO"], "jit": guest}
best, sums = {way: {} for way in ways}, {}
for _ in range(int(runs)):
    for way, command in ways.items():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        sys.stderr.write("".join(line + "\n" for line in done.stderr.splitlines() if "-handoff" in line))
        for line in done.stdout.splitlines():
            if len(words := line.split()) == 3:
                name, ticks, checksum = words
                assert sums.setdefault(name, checksum) == checksum, f"{way}: {line}: not {sums[name]}"
                best[way][name] = min(int(ticks), best[way].get(name, int(ticks)))
ratios = {way: {n: best[way][n] / best["native"][n] for n in sums} for way in ("kvm", "jit")}
print(f"{'program':14} {'kvm':>6} {'jit':>6}   times the native run's ticks")
for name in sums:
    print(f"{name:14} {ratios['kvm'][name]:6.3f} {ratios['jit'][name]:6.2f}")
native = sum(best["native"].values())
print(f"{'all':14} {sum(best['kvm'].values()) / native:6.3f} {sum(best['jit'].values()) / native:6.2f}")
print(f"{'median':14} {statistics.median(ratios['kvm'].values()):6.3f} {statistics.median(ratios['jit'].values()):6.2f}")
