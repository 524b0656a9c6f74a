/* An HTTP/1.1 loader that is not the limit: N keep-alive connections on one epoll, bodies read 256 KiB at
 * a time and thrown away. A loader for a benchmark, compiled when it runs; it trusts its server's syntax.
 *
 *     loader HOST PORT CONNECTIONS SECONDS TARGETS_FILE
 *
 * TARGETS_FILE has one request target a line, and after a tab a header if one is wanted; every connection
 * takes the next one in turn. SECONDS 0: each target once. Prints
 *     {"requests": n, "bytes": n, "seconds": s, "cpu_s": s, "p50_us": t, "p99_us": t, "bad": n}
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, HEAD = 16 << 10, MAX_TARGETS = 1 << 16, MAX_SAMPLES = 1 << 20 };

struct conn {
    int fd, head_len;
    long left; /* bytes of body to come; -1 while the head arrives */
    double began;
    char head[HEAD];
};

static char *requests[MAX_TARGETS];
static int request_len[MAX_TARGETS], targets, next_target, once;
static float samples[MAX_SAMPLES];
static long done, bytes, bad;
static char scratch[CHUNK];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void ask(struct conn *c) {
    if (once && next_target >= targets) return; /* nothing comes on it any more */
    int i = next_target++ % targets;
    c->left = -1;
    c->head_len = 0;
    c->began = now();
    if (send(c->fd, requests[i], request_len[i], MSG_NOSIGNAL) != request_len[i]) die("send");
}

static void answered(struct conn *c) {
    samples[done++ % MAX_SAMPLES] = (float)((now() - c->began) * 1e6);
    ask(c);
}

/* Reads what is there; the response may end and the next request go out. */
static void readable(struct conn *c) {
    if (c->left < 0) {
        ssize_t n = recv(c->fd, c->head + c->head_len, HEAD - 1 - c->head_len, 0);
        if (n <= 0) die("recv of a head");
        c->head_len += n;
        c->head[c->head_len] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) return;
        char *length = strcasestr(c->head, "content-length:");
        if (!length || length > end) { fprintf(stderr, "no length: %.200s\n", c->head); exit(1); }
        if (strncmp(c->head, "HTTP/1.1 20", 11)) bad++;
        long body = atol(length + 15);
        bytes += body;
        c->left = body - (c->head + c->head_len - end - 4);
    } else {
        ssize_t n = recv(c->fd, scratch, c->left < CHUNK ? c->left : CHUNK, 0);
        if (n <= 0) { if (n < 0 && errno == EAGAIN) return; die("recv of a body"); }
        c->left -= n;
    }
    if (c->left == 0) answered(c);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "loader HOST PORT CONNECTIONS SECONDS TARGETS_FILE\n"); return 2; }
    int count = atoi(argv[3]);
    double seconds = atof(argv[4]);
    char line[8192], text[8400];
    FILE *file = fopen(argv[5], "r");
    if (!file) die(argv[5]);
    while (targets < MAX_TARGETS && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *header = strchr(line, '\t');
        if (header) *header++ = 0;
        request_len[targets] = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: b\r\n%s%s\r\n", line,
                                        header ? header : "", header ? "\r\n" : "");
        requests[targets++] = strdup(text);
    }
    if (!targets) { fprintf(stderr, "no targets\n"); return 2; }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    int ep = epoll_create1(0), one = 1;
    struct conn *conns = calloc(count, sizeof *conns);
    for (int i = 0; i < count; i++) {
        conns[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(conns[i].fd, (struct sockaddr *)&to, sizeof to)) die("connect");
        setsockopt(conns[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &conns[i]};
        epoll_ctl(ep, EPOLL_CTL_ADD, conns[i].fd, &ev);
    }
    double began = now();
    once = seconds <= 0;
    for (int i = 0; i < count; i++) ask(&conns[i]);
    while (once ? done < targets : now() - began < seconds) {
        struct epoll_event events[64];
        int n = epoll_wait(ep, events, 64, 5000);
        if (n == 0) { fprintf(stderr, "nothing for 5 s\n"); return 1; }
        for (int i = 0; i < n; i++) readable(events[i].data.ptr);
    }
    double took = now() - began;
    for (int i = 0; i < count; i++)
        if (conns[i].left > 0) bytes -= conns[i].left; /* announced, not received */
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    double cpu = use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
    long kept = done < MAX_SAMPLES ? done : MAX_SAMPLES;
    qsort(samples, kept, sizeof *samples, by_value);
    printf("{\"requests\": %ld, \"bytes\": %ld, \"seconds\": %.6f, \"cpu_s\": %.6f, \"p50_us\": %.1f, "
           "\"p99_us\": %.1f, \"bad\": %ld}\n",
           done, bytes, took, cpu, kept ? samples[kept / 2] : 0, kept ? samples[kept * 99 / 100] : 0, bad);
    return bad ? 1 : 0;
}
