/* Small pieces that the generator and the floors share: clock, parsing, pinning, socket options. */
#ifndef WAVRY_LOADTEST_SOCKETS_H
#define WAVRY_LOADTEST_SOCKETS_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

/* Largest UDP payload that a GRO receive can hand over. */
#define MAX_AGGREGATE_BYTES 65536

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* User and system time of this process, all threads. */
static inline uint64_t process_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline void usage_error(const char *what) {
    fprintf(stderr, "wrong argument: %s\n", what);
    exit(2);
}

static inline uint64_t parse_number(const char *text, const char *name) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-') usage_error(name);
    return (uint64_t)value;
}

/* "127.0.0.1:4500", IPv4 only: the bench stays on the loopback. */
static inline struct sockaddr_in parse_ipv4(const char *text, const char *name) {
    char host[32];
    const char *colon = strrchr(text, ':');
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    if (colon == NULL || (size_t)(colon - text) >= sizeof host) usage_error(name);
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    uint64_t port = parse_number(colon + 1, name);
    address.sin_family = AF_INET;
    if (port > 65535 || inet_pton(AF_INET, host, &address.sin_addr) != 1) usage_error(name);
    address.sin_port = htons((uint16_t)port);
    return address;
}

static inline void pin_to_core(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) die("sched_setaffinity");
}

/* Segment size of a received aggregate, or its whole length where it is one datagram. */
static inline size_t segment_bytes(struct msghdr *message, size_t length) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof size);
            if (size > 0) return (size_t)size;
        }
    }
    return length;
}

/* Ask the kernel to cut what `message` sends into datagrams of `bytes`; `control` has room for it. */
static inline void set_segment(struct msghdr *message, void *control, size_t control_bytes,
                               uint16_t bytes) {
    memset(control, 0, control_bytes);
    message->msg_control = control;
    message->msg_controllen = CMSG_SPACE(sizeof(uint16_t));
    struct cmsghdr *c = CMSG_FIRSTHDR(message);
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    memcpy(CMSG_DATA(c), &bytes, sizeof bytes);
}

#endif
