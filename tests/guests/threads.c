/* Threads that count: with a mutex, with atomics, by turns that they give each other (futexes), and behind barriers.
   Prints what came out; every number is known beforehand. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, ROUNDS = 20000, TURNS = 2000 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t turn_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static long guarded, turn, order_broken, barrier_broken;
static atomic_long added, swapped;
static atomic_int spin;
static long spun;
static atomic_long behind[THREADS];

static void *work(void *arg) {
    long me = (long)arg;
    for (long i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        guarded++;
        pthread_mutex_unlock(&mutex);
        atomic_fetch_add(&added, 1);
        long old = atomic_load(&swapped);
        while (!atomic_compare_exchange_weak(&swapped, &old, old + 3)) {
        }
        while (atomic_exchange(&spin, 1)) {
            __builtin_ia32_pause();
        }
        spun++;
        atomic_store(&spin, 0);
    }
    for (long i = 0; i < TURNS; i++) {
        pthread_mutex_lock(&turn_mutex);
        while (turn % THREADS != me) {
            pthread_cond_wait(&turned, &turn_mutex);
        }
        if (turn / THREADS != i) {
            order_broken++;
        }
        turn++;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&turn_mutex);
    }
    for (long i = 1; i <= 200; i++) {
        atomic_store_explicit(&behind[me], i, memory_order_relaxed);
        pthread_barrier_wait(&barrier);
        for (int t = 0; t < THREADS; t++) {
            if (atomic_load_explicit(&behind[t], memory_order_relaxed) != i) {
                barrier_broken++;
            }
        }
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (long t = 0; t < THREADS; t++) {
        if (pthread_create(&threads[t], NULL, work, (void *)t)) {
            puts("THREADS cannot be created");
            return 1;
        }
    }
    for (int t = 0; t < THREADS; t++) {
        pthread_join(threads[t], NULL);
    }
    printf("THREADS mutex=%ld add=%ld swap=%ld spin=%ld turns=%ld order=%ld barrier=%ld\n", guarded, added, swapped, spun,
           turn, order_broken, barrier_broken);
    return 0;
}
