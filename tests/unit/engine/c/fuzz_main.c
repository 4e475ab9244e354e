/* Drives the fuzz target where libFuzzer is not installed: seeded mutations of the corpus.
 *
 * usage: fuzz_main SECONDS SEED CORPUS-FILE...
 * The input that fails is left in ./crash-input, to be run as: fuzz_main 0 0 crash-input
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes);
void __asan_on_error(void);

enum { MAX_SEEDS = 256, MAX_BYTES = 8192 };

static uint8_t seeds[MAX_SEEDS][MAX_BYTES];
static size_t seed_bytes[MAX_SEEDS];
static unsigned seed_count;
static uint8_t input[MAX_BYTES];
static size_t input_bytes;
static uint64_t state;

static uint64_t next_random(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static size_t below(size_t end) { return end ? (size_t)(next_random() % end) : 0; }

static void keep_input(void) {
    const int fd = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, input, input_bytes) != (ssize_t)input_bytes) _exit(98);
    close(fd);
}

void __asan_on_error(void) { keep_input(); }

static void on_abort(int number) {
    (void)number;
    keep_input();
}

static void mutate(void) {
    static const uint8_t interesting[] = {0, 1, 2, 4, 0x10, 0x57, 0x7f, 0x80, 0xff, 'R', 'I'};
    const size_t at = below(input_bytes);
    switch (below(9)) {
        case 0: input[at] ^= (uint8_t)(1u << below(8)); break;
        case 1: input[at] = interesting[below(sizeof interesting)]; break;
        case 2: input[at] = (uint8_t)next_random(); break;
        case 3: input_bytes = at + 1; break;
        case 4: { /* copy a part over another */
            const size_t from = below(input_bytes);
            const size_t room = input_bytes - (at > from ? at : from);
            memmove(input + at, input + from, below(room + 1));
            break;
        }
        case 5: { /* append a part of another seed */
            const unsigned other = (unsigned)below(seed_count);
            const size_t from = below(seed_bytes[other]);
            size_t count = below(seed_bytes[other] - from + 1);
            if (count > MAX_BYTES - input_bytes) count = MAX_BYTES - input_bytes;
            memcpy(input + input_bytes, seeds[other] + from, count);
            input_bytes += count;
            break;
        }
        case 6: input[below(input_bytes < 4 ? input_bytes : 4)] = (uint8_t)next_random(); break;
        case 7: input[input_bytes > 4 ? 4 + below(input_bytes - 4 < 28 ? input_bytes - 4 : 28) : 0] ^= (uint8_t)(1u << below(8)); break;
        default: break;
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: fuzz_main SECONDS SEED FILE...\n"), 2;
    const double seconds = atof(argv[1]);
    signal(SIGABRT, on_abort); /* a CHECK of the target */
    state = strtoull(argv[2], NULL, 10) * 2 + 1;
    for (int i = 3; i < argc && seed_count < MAX_SEEDS; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) return perror(argv[i]), 2;
        seed_bytes[seed_count] = fread(seeds[seed_count], 1, MAX_BYTES, file);
        fclose(file);
        memcpy(input, seeds[seed_count], input_bytes = seed_bytes[seed_count]);
        LLVMFuzzerTestOneInput(input, input_bytes);
        if (seed_bytes[seed_count] > 0) seed_count++;
    }
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint64_t runs = 0;; runs++) {
        if (runs % 256 == 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            const double passed = (double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) / 1e9;
            if (passed >= seconds) {
                printf("runs: %llu\n", (unsigned long long)runs);
                return 0;
            }
        }
        const unsigned seed = (unsigned)below(seed_count);
        memcpy(input, seeds[seed], input_bytes = seed_bytes[seed]);
        for (size_t changes = 1 + below(6); changes > 0 && input_bytes > 0; changes--) mutate();
        LLVMFuzzerTestOneInput(input, input_bytes);
    }
}
