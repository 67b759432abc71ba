#!/bin/sh
# make.sh FOLDER PROGRAM [RUNS]: builds a program of Linux that is a guest's kernel as well, from the int_*.c, fp_*.c and
# simd_*.c of FOLDER, each of which has a function of its file's name that returns a checksum. In both, each runs RUNS
# times (8), and says: its name, ticks of the time-stamp counter of the best run, its checksum.
set -eu
here=$(dirname "$0") from=$1 program=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for file in "$from"/int_*.c "$from"/fp_*.c "$from"/simd_*.c; do
	name=$(basename "$file" .c) flags=
	case $name in
	simd_shuffle) continue;; # SSSE3, which not every processor's model has
	int_fib) flags="-fno-inline -fno-optimize-sibling-calls";;
	fp_matmul) flags=-ftree-vectorize;;
	esac
	gcc -O2 -fno-pic -fno-stack-protector $flags -c "$file" -o "$work/$name.o"
	echo "B(\"$(echo $name | tr _ -)\", $name)" >>"$work/programs.h"
done
gcc -c "$here/start.S" -o "$work/start.o"
gcc -O2 -fno-pic -fno-stack-protector -fno-builtin -Wall -Wextra -I"$work" -DRUNS="${3:-8}" \
	-c "$here/run.c" -o "$work/run.o"
gcc -static -nostdlib -no-pie -Wl,-Ttext-segment=0x1000000 -Wl,--build-id=none -o "$program" "$work"/*.o -lgcc
