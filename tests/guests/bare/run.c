// Runs each program of the list some times and tells how many ticks of the time-stamp counter the best run took: on a
// serial port in the guest, by Linux' write otherwise. The few functions of a C library that such programs use are here.
#include <stddef.h>
#include <stdint.h>

int is_guest;

static uint64_t ticks(void)
{
	uint32_t low, high;
	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static void out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static long linux_call(long n, long a, long b, long c)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return r;
}

size_t strlen(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s)
{
	if (is_guest)
		while (*s)
			out(0x3f8, *s++);
	else
		linux_call(1, 1, (long)s, strlen(s));
}

static void say_number(uint64_t n)
{
	char digits[24], *at = digits + 23;
	*at = 0;
	do
		*--at = '0' + n % 10;
	while (n /= 10);
	say(at);
}

static void end(int code)
{
	if (is_guest)
		for (;;)
			__asm__ volatile("outw %w0, %w1" : : "a"(0x2000), "d"(0x604)); // SLP_EN: power off
	linux_call(231, code, 0, 0);
}

// What the programs ask of their surroundings.
static uint64_t began;
void start(void) { began = ticks(); }
void work(double amount, const char *unit) { (void)amount, (void)unit; }
void die(const char *what) { say(what), say(" failed\n"), end(1); }
void exit(int code) { end(code); __builtin_unreachable(); }

static char heap[64 << 20] __attribute__((aligned(4096)));
static size_t used;
void *malloc(size_t n)
{
	size_t at = used;
	used = (used + n + 63) & ~(size_t)63;
	if (used > sizeof heap)
		die("malloc");
	return heap + at;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *r = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	return r;
}

void *memset(void *to, int value, size_t n)
{
	void *r = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return r;
}

void *memmove(void *to, const void *from, size_t n)
{
	if ((uintptr_t)to - (uintptr_t)from >= n)
		return memcpy(to, from, n);
	for (char *t = to; n--;)
		t[n] = ((const char *)from)[n];
	return to;
}

char *strcpy(char *to, const char *from) { return memcpy(to, from, strlen(from) + 1); }

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

double sqrt(double x)
{
	__asm__("sqrtsd %0, %0" : "+x"(x));
	return x;
}

// By Newton's steps, for what is not negative.
double cbrt(double x)
{
	double r = x > 1 ? x : 1;
	for (int n = 0; n < 64; n++)
		r -= (r * r * r - x) / (3 * r * r);
	return r;
}

static void swap(char *a, char *b, size_t size)
{
	while (size--) {
		char t = *a;
		*a++ = *b, *b++ = t;
	}
}

// Heapsort: no worst case.
void qsort(void *base, size_t n, size_t size, int (*less)(const void *, const void *))
{
	char *a = base;
	for (size_t from = n / 2, to = n; to > 1;) {
		size_t at, child;
		if (from)
			at = --from;
		else
			swap(a, a + --to * size, size), at = 0;
		for (; (child = 2 * at + 1) < to; at = child) {
			if (child + 1 < to && less(a + child * size, a + (child + 1) * size) < 0)
				child++;
			if (less(a + at * size, a + child * size) >= 0)
				break;
			swap(a + at * size, a + child * size, size);
		}
	}
}

#define B(name, f) uint64_t f(void);
#include "programs.h"
#undef B
#define B(name, f) { name, f },
static const struct { const char *name; uint64_t (*run)(void); } programs[] = {
#include "programs.h"
};

void run(void)
{
	say("GO\n");
	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
		uint64_t best = ~0ull, check = 0;
		for (int n = 0; n < RUNS; n++) {
			used = 0;
			start();
			check = programs[i].run();
			uint64_t took = ticks() - began;
			if (took < best)
				best = took;
		}
		say(programs[i].name), say(" "), say_number(best), say(" "), say_number(check), say("\n");
	}
	end(0);
}
