/* The floors of the bench: what the kernel alone costs a program that forwards datagrams.
 *
 * Everything that arrives is sent on to one fixed destination, with no check at all:
 *   plain  one recvfrom and one sendto for each datagram
 *   mmsg   recvmmsg and sendmmsg
 *   gso    recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT
 *
 * usage: floor MODE --to 127.0.0.1:PORT
 * Prints {"port": N} when it is ready, and its counts when SIGTERM ends it.
 */
#define _GNU_SOURCE
#include "sockets.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { BATCH = 64, BUFFER_BYTES = 2048, GSO_BATCH = 16 };

static volatile sig_atomic_t stopping;
static uint64_t received, forwarded, failed;

static void on_stop(int number) {
    (void)number;
    stopping = 1;
}

/* Sends a prepared batch; a message that the kernel refuses is counted and left out. */
static void send_batch(int fd, struct mmsghdr *messages, unsigned count, const unsigned *packets) {
    unsigned done = 0;
    while (done < count) {
        int sent = sendmmsg(fd, messages + done, count - done, 0);
        if (sent < 0) {
            if (errno == EINTR) continue;
            failed += packets[done];
            done += 1;
            continue;
        }
        for (int i = 0; i < sent; i++) forwarded += packets[done + (unsigned)i];
        done += (unsigned)sent;
    }
}

static void run_plain(int fd, const struct sockaddr_in *to) {
    static unsigned char buffer[BUFFER_BYTES];
    while (!stopping) {
        ssize_t length = recvfrom(fd, buffer, sizeof buffer, 0, NULL, NULL);
        if (length < 0) continue;
        received += 1;
        if (sendto(fd, buffer, (size_t)length, 0, (const struct sockaddr *)to, sizeof *to) < 0)
            failed += 1;
        else
            forwarded += 1;
    }
}

static void run_mmsg(int fd, struct sockaddr_in *to) {
    static unsigned char buffers[BATCH][BUFFER_BYTES];
    static struct mmsghdr in[BATCH], out[BATCH];
    static struct iovec in_vectors[BATCH], out_vectors[BATCH];
    static struct sockaddr_in from[BATCH];
    unsigned packets[BATCH];
    for (unsigned i = 0; i < BATCH; i++) {
        in_vectors[i] = (struct iovec){buffers[i], BUFFER_BYTES};
        in[i].msg_hdr = (struct msghdr){.msg_iov = &in_vectors[i], .msg_iovlen = 1};
        out[i].msg_hdr = (struct msghdr){.msg_name = to,
                                         .msg_namelen = sizeof *to,
                                         .msg_iov = &out_vectors[i],
                                         .msg_iovlen = 1};
        packets[i] = 1;
    }
    while (!stopping) {
        for (unsigned i = 0; i < BATCH; i++) {
            /* A relay must know who sent: the floor pays for the source address too. */
            in[i].msg_hdr.msg_name = &from[i];
            in[i].msg_hdr.msg_namelen = sizeof from[i];
        }
        int count = recvmmsg(fd, in, BATCH, MSG_WAITFORONE, NULL);
        if (count <= 0) continue;
        received += (unsigned)count;
        for (int i = 0; i < count; i++) out_vectors[i] = (struct iovec){buffers[i], in[i].msg_len};
        send_batch(fd, out, (unsigned)count, packets);
    }
}

static void run_gso(int fd, struct sockaddr_in *to) {
    static unsigned char buffers[GSO_BATCH][MAX_AGGREGATE_BYTES];
    static struct mmsghdr in[GSO_BATCH], out[GSO_BATCH];
    static struct iovec in_vectors[GSO_BATCH], out_vectors[GSO_BATCH];
    static struct sockaddr_in from[GSO_BATCH];
    static union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } in_control[GSO_BATCH], out_control[GSO_BATCH];
    unsigned packets[GSO_BATCH];
    int on = 1;
    if (setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) != 0) die("UDP_GRO");
    for (unsigned i = 0; i < GSO_BATCH; i++) in_vectors[i] = (struct iovec){buffers[i], MAX_AGGREGATE_BYTES};
    while (!stopping) {
        for (unsigned i = 0; i < GSO_BATCH; i++) {
            in[i].msg_hdr = (struct msghdr){.msg_name = &from[i],
                                            .msg_namelen = sizeof from[i],
                                            .msg_iov = &in_vectors[i],
                                            .msg_iovlen = 1,
                                            .msg_control = &in_control[i],
                                            .msg_controllen = sizeof in_control[i]};
        }
        int count = recvmmsg(fd, in, GSO_BATCH, MSG_WAITFORONE, NULL);
        if (count <= 0) continue;
        for (int i = 0; i < count; i++) {
            size_t length = in[i].msg_len;
            size_t segment = segment_bytes(&in[i].msg_hdr, length);
            packets[i] = segment == 0 ? 1 : (unsigned)((length + segment - 1) / segment);
            received += packets[i];
            out_vectors[i] = (struct iovec){buffers[i], length};
            out[i].msg_hdr = (struct msghdr){.msg_name = to,
                                             .msg_namelen = sizeof *to,
                                             .msg_iov = &out_vectors[i],
                                             .msg_iovlen = 1};
            if (packets[i] > 1)
                set_segment(&out[i].msg_hdr, &out_control[i], sizeof out_control[i],
                            (uint16_t)segment);
        }
        send_batch(fd, out, (unsigned)count, packets);
    }
}

int main(int argc, char **argv) {
    if (argc != 4 || strcmp(argv[2], "--to") != 0) {
        fprintf(stderr, "usage: floor plain|mmsg|gso --to 127.0.0.1:PORT\n");
        return 2;
    }
    struct sockaddr_in to = parse_ipv4(argv[3], "--to");
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* never outlives the bench */
    struct sigaction action;
    memset(&action, 0, sizeof action); /* no SA_RESTART: a blocked receive must return */
    action.sa_handler = on_stop;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    int buffer = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    /* The signal may come between the test of `stopping` and the receive. */
    struct timeval wait = {.tv_sec = 0, .tv_usec = 200000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t here_bytes = sizeof here;
    if (bind(fd, (struct sockaddr *)&here, sizeof here) != 0) die("bind");
    if (getsockname(fd, (struct sockaddr *)&here, &here_bytes) != 0) die("getsockname");
    printf("{\"port\": %u}\n", ntohs(here.sin_port));
    fflush(stdout);

    if (strcmp(argv[1], "plain") == 0)
        run_plain(fd, &to);
    else if (strcmp(argv[1], "mmsg") == 0)
        run_mmsg(fd, &to);
    else if (strcmp(argv[1], "gso") == 0)
        run_gso(fd, &to);
    else
        usage_error("mode");
    printf("{\"received\": %llu, \"forwarded\": %llu, \"failed\": %llu, \"cpu_ns\": %llu}\n",
           (unsigned long long)received, (unsigned long long)forwarded, (unsigned long long)failed,
           (unsigned long long)process_cpu_ns());
    close(fd);
    return 0;
}
