// Connects in one of the ways that the kernel offers, talks to an echo server, and says what it saw in one line of JSON:
//
//     ways WAY ADDRESS PORT [ARGUMENT [ARGUMENT]]
//
// {"ok": true, "peer": …, "local": …, "received": …} or {"ok": false, "error": "EPERM", "at": "connect"}, and what a way
// has to tell besides. Exit code 1 if it did not get through. C, since the same source has to become a program of glibc,
// a static one of musl, and a 32-bit one.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#ifndef MSG_FASTOPEN
#define MSG_FASTOPEN 0x20000000
#endif
#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif
#define LIMIT_S 20

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage room;
    };
    socklen_t length;
};

static const char *way, *self, *argument, *argument2;
static struct address target;
// Further members of the line, each with a comma before it.
static char besides[1024];

// --- what is said

static const char *name_of(int error) {
    static const struct { int error; const char *name; } names[] = {
        {EPERM, "EPERM"}, {EACCES, "EACCES"}, {ECONNREFUSED, "ECONNREFUSED"}, {ECONNRESET, "ECONNRESET"},
        {ETIMEDOUT, "ETIMEDOUT"}, {ENETUNREACH, "ENETUNREACH"}, {EHOSTUNREACH, "EHOSTUNREACH"},
        {EADDRNOTAVAIL, "EADDRNOTAVAIL"}, {EADDRINUSE, "EADDRINUSE"}, {EAFNOSUPPORT, "EAFNOSUPPORT"},
        {EPROTONOSUPPORT, "EPROTONOSUPPORT"}, {EINPROGRESS, "EINPROGRESS"}, {EALREADY, "EALREADY"},
        {EISCONN, "EISCONN"}, {ENOTCONN, "ENOTCONN"}, {EAGAIN, "EAGAIN"}, {EINVAL, "EINVAL"}, {ENOSYS, "ENOSYS"},
        {EPIPE, "EPIPE"}, {EOPNOTSUPP, "EOPNOTSUPP"}, {ENODEV, "ENODEV"}, {ENOENT, "ENOENT"}, {EBUSY, "EBUSY"},
    };
    static char number[16];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].error == error) return names[i].name;
    snprintf(number, sizeof number, "%d", error);
    return number;
}

static void also(const char *member, const char *format, ...) {
    size_t used = strlen(besides);
    used += snprintf(besides + used, sizeof besides - used, ", \"%s\": \"", member);
    va_list values;
    va_start(values, format);
    used += vsnprintf(besides + used, sizeof besides - used, format, values);
    va_end(values);
    snprintf(besides + used, sizeof besides - used, "\"");
}

static void failed(const char *at) {
    int error = errno;
    printf("{\"way\": \"%s\", \"ok\": false, \"error\": \"%s\", \"at\": \"%s\"%s}\n", way, name_of(error), at, besides);
    fflush(stdout);
    _exit(1);
}

static void check(long result, const char *at) {
    if (result < 0) failed(at);
}

static const char *text_of(const struct address *a, char *text) {
    char ip[INET6_ADDRSTRLEN];
    if (a->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->v4.sin_addr, ip, sizeof ip);
        sprintf(text, "%s:%d", ip, ntohs(a->v4.sin_port));
    } else {
        inet_ntop(AF_INET6, &a->v6.sin6_addr, ip, sizeof ip);
        sprintf(text, "[%s]:%d", ip, ntohs(a->v6.sin6_port));
    }
    return text;
}

static const char *end_of(int fd, int (*name)(int, struct sockaddr *, socklen_t *), char *text) {
    struct address a = {.length = sizeof a.room};
    if (name(fd, &a.any, &a.length) < 0) return name_of(errno);
    return text_of(&a, text);
}

// --- sockets and addresses

static struct address parse(const char *ip, const char *port) {
    struct address a = {.length = 0};
    const char *percent = strchr(ip, '%');
    char bare[INET6_ADDRSTRLEN];
    snprintf(bare, sizeof bare, "%.*s", percent ? (int)(percent - ip) : (int)strlen(ip), ip);
    if (inet_pton(AF_INET, bare, &a.v4.sin_addr) == 1) {
        a.v4.sin_family = AF_INET;
        a.v4.sin_port = htons(atoi(port));
        a.length = sizeof a.v4;
    } else if (inet_pton(AF_INET6, bare, &a.v6.sin6_addr) == 1) {
        a.v6.sin6_family = AF_INET6;
        a.v6.sin6_port = htons(atoi(port));
        a.v6.sin6_scope_id = percent ? if_nametoindex(percent + 1) : 0;
        a.length = sizeof a.v6;
    } else {
        fprintf(stderr, "ways: `%s` is no address\n", ip);
        exit(2);
    }
    return a;
}

// Without an argument: a way that the test calls wrongly.
static const char *needed(const char *value) {
    if (value) return value;
    fprintf(stderr, "ways: %s needs an argument\n", way);
    exit(2);
}

static int open_socket(int family, int flags, int protocol) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | flags, protocol);
    check(fd, "socket");
    // Also limits a blocking connect().
    struct timeval limit = {.tv_sec = LIMIT_S};
    check(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit), "SO_SNDTIMEO");
    check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), "SO_RCVTIMEO");
    return fd;
}

static int tcp(void) { return open_socket(target.any.sa_family, 0, 0); }

static int dial(int fd) {
    check(connect(fd, &target.any, target.length), "connect");
    return fd;
}

static void set(int fd, int level, int option, int value, const char *name) {
    check(setsockopt(fd, level, option, &value, sizeof value), name);
}

static void bind_to(int fd, struct address a) { check(bind(fd, &a.any, a.length), "bind"); }

static int so_error(int fd) {
    int error = 0;
    socklen_t length = sizeof error;
    check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), "getsockopt");
    return error;
}

// --- the conversation

static void say(int fd, const char *words) {
    for (size_t length = strlen(words); length;) {
        ssize_t count = send(fd, words, length, MSG_NOSIGNAL);
        check(count, "send");
        words += count;
        length -= count;
    }
}

/* ENOTCONN: it was reset meanwhile, which is what reading says. */
static void end(int fd) {
    if (shutdown(fd, SHUT_WR) < 0 && errno != ENOTCONN) failed("shutdown");
}

static size_t hear(int fd, char *room, size_t size, size_t enough) {
    size_t heard = 0;
    while (heard < enough) {
        ssize_t count = recv(fd, room + heard, size - 1 - heard, 0);
        check(count, "recv");
        if (count == 0) break;
        heard += count;
    }
    room[heard] = 0;
    return heard;
}

// Sends what is still to be sent, closes that direction, and reads to the end.
static void converse(int fd, int sent_already) {
    char words[128], heard[1024], peer[64], local[64];
    snprintf(words, sizeof words, "sent by %s", way);
    check(fcntl(fd, F_SETFL, 0), "fcntl");
    const char *there = end_of(fd, getpeername, peer), *here = end_of(fd, getsockname, local);
    if (!sent_already) say(fd, words);
    end(fd);
    hear(fd, heard, sizeof heard, sizeof heard - 1);
    printf("{\"way\": \"%s\", \"ok\": true, \"peer\": \"%s\", \"local\": \"%s\", \"received\": \"%s\"%s}\n", way, there,
           here, heard, besides);
    fflush(stdout);
}

// --- ways of waiting

static int begin(void) {
    int fd = open_socket(target.any.sa_family, SOCK_NONBLOCK, 0);
    if (connect(fd, &target.any, target.length) < 0 && errno != EINPROGRESS) failed("connect");
    return fd;
}

static int finish(int fd) {
    errno = so_error(fd);
    if (errno) failed("SO_ERROR");
    return fd;
}

static int by_poll(void) {
    struct pollfd wanted = {.fd = begin(), .events = POLLOUT};
    check(poll(&wanted, 1, LIMIT_S * 1000), "poll");
    return finish(wanted.fd);
}

static int by_select(void) {
    int fd = begin();
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval limit = {.tv_sec = LIMIT_S};
    check(select(fd + 1, NULL, &set, NULL, &limit), "select");
    return finish(fd);
}

// Also the conversation is by epoll: `edge` wakes once for each change, so that a wake-up that capture loses is a hang.
static void by_epoll(unsigned edge) {
    char words[64], heard[1024], peer[64] = "", local[64] = "";
    const char *there = peer, *here = local;
    size_t got = 0;
    int sent = 0, ring = epoll_create1(0), fd = begin();
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | edge};
    check(epoll_ctl(ring, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    snprintf(words, sizeof words, "sent by %s", way);
    for (;;) {
        int count = epoll_wait(ring, &event, 1, LIMIT_S * 1000);
        if (count == 0) errno = ETIMEDOUT;
        if (count != 1) failed("epoll_wait");
        if (!sent && event.events & EPOLLOUT) {
            finish(fd);
            there = end_of(fd, getpeername, peer);
            here = end_of(fd, getsockname, local);
            say(fd, words);
            end(fd);
            sent = 1;
            if (!edge) {
                event.events = EPOLLIN;
                check(epoll_ctl(ring, EPOLL_CTL_MOD, fd, &event), "epoll_ctl");
            }
        }
        for (;;) {
            ssize_t count = recv(fd, heard + got, sizeof heard - 1 - got, 0);
            if (count < 0 && errno == EAGAIN) break;
            check(count, "recv");
            if (count == 0) {
                heard[got] = 0;
                printf("{\"way\": \"%s\", \"ok\": true, \"peer\": \"%s\", \"local\": \"%s\", \"received\": \"%s\"}\n", way,
                       there, here, heard);
                return;
            }
            got += count;
            if (!edge) break;
        }
    }
}

static int by_io_uring(unsigned flags) {
    struct io_uring_params p = {.flags = flags, .sq_thread_idle = 2000};
    int ring = syscall(__NR_io_uring_setup, 4, &p);
    check(ring, "io_uring_setup");
    char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqe = mmap(NULL, p.sq_entries * sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                                    ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED) failed("mmap");
    int fd = tcp();
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_CONNECT;
    sqe->fd = fd;
    sqe->addr = (unsigned long)&target;
    sqe->off = target.length;
    ((unsigned *)(sq + p.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_SEQ_CST);
    int polled = flags & IORING_SETUP_SQPOLL;
    unsigned enter = IORING_ENTER_GETEVENTS | (polled ? IORING_ENTER_SQ_WAKEUP : 0);
    check(syscall(__NR_io_uring_enter, ring, 1, 1, enter, NULL, 0), "io_uring_enter");
    while (__atomic_load_n((unsigned *)(cq + p.cq_off.tail), __ATOMIC_ACQUIRE) == 0)
        check(syscall(__NR_io_uring_enter, ring, 0, 1, enter, NULL, 0), "io_uring_enter");
    errno = -((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
    if (errno) failed("connect");
    return fd;
}

// --- data in the SYN

static void by_fastopen_sendto(void) {
    char words[64];
    int fd = tcp();
    snprintf(words, sizeof words, "sent by %s", way);
    check(sendto(fd, words, strlen(words), MSG_FASTOPEN | MSG_NOSIGNAL, &target.any, target.length), "sendto");
    converse(fd, 1);
}

static int by_fastopen_connect(void) {
    char text[64];
    int fd = tcp();
    set(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1, "TCP_FASTOPEN_CONNECT");
    dial(fd);
    // Where the SYN waits for the first write there is no peer yet.
    also("early", "%s", end_of(fd, getpeername, text));
    return fd;
}

// Whether the SYN carried data that the other end's kernel took: TCPI_OPT_SYN_DATA.
static void tell_syn_data(int fd) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    check(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length), "TCP_INFO");
    also("syn_data", "%s", info.tcpi_options & 32 ? "taken" : "not taken");
}

// --- the same socket again

static void again(void) {
    int fd = tcp();
    struct address first = parse(needed(argument), needed(argument2));
    int refused = connect(fd, &first.any, first.length) < 0;
    also("first", "%s", refused ? name_of(errno) : "connected");
    converse(dial(fd), 0);
}

// ARGUMENT is where it connects to afterwards.
static void dissolve(void) {
    char text[64], room[64];
    int fd = dial(tcp());
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    say(fd, "first");
    hear(fd, room, sizeof room, 5);
    also("first_peer", "%s", end_of(fd, getpeername, text));
    check(connect(fd, &none, sizeof none), "dissolve");
    also("between", "%s", end_of(fd, getpeername, text));
    target = parse(needed(argument), needed(argument2));
    converse(dial(fd), 0);
}

// --- other processes, cgroups and namespaces

static void move_to(const char *cgroup) {
    char path[256];
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, "open cgroup.procs");
    check(write(fd, "0", 1), "write cgroup.procs");
    close(fd);
}

static void send_fd(int to, int fd) {
    char byte = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    check(sendmsg(to, &message, 0), "sendmsg");
}

static int receive_fd(int from) {
    char byte, room[CMSG_SPACE(sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t count = recvmsg(from, &message, 0);
    check(count, "recvmsg");
    // The one that made it has failed, and said so.
    if (count == 0) _exit(1);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void wait_for(pid_t child) {
    int status;
    check(waitpid(child, &status, 0), "waitpid");
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
}

// This process makes the socket (and connects it, if `connected`); one in the cgroup ARGUMENT gets it and goes on.
static void pass(int connected) {
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    pid_t child = fork();
    check(child, "fork");
    if (child == 0) {
        close(pair[0]);
        move_to(needed(argument));
        int fd = receive_fd(pair[1]);
        converse(connected ? fd : dial(fd), 0);
        _exit(0);
    }
    int fd = tcp();
    if (connected) dial(fd);
    send_fd(pair[0], fd);
    close(fd);
    wait_for(child);
}

// The socket is made in the cgroup ARGUMENT2, which is then removed where it is empty; it is connected in ARGUMENT.
static void moved(void) {
    int fd;
    mkdir(needed(argument2), 0755);
    move_to(argument2);
    fd = tcp();
    move_to(needed(argument));
    also("removed", "%s", rmdir(argument2) == 0 ? "yes" : name_of(errno));
    converse(dial(fd), 0);
}

static void forked(void) {
    int fd = tcp();
    pid_t child = fork();
    check(child, "fork");
    if (child) wait_for(child);
    converse(dial(fd), 0);
}

static void vforked(char **arguments) {
    char name[] = "blocking";
    arguments[1] = name;
    pid_t child = vfork();
    if (child == 0) {
        execv(self, arguments);
        _exit(3);
    }
    check(child, "vfork");
    wait_for(child);
}

static void *dial_thread(void *fd) {
    dial(*(int *)fd);
    return NULL;
}

static void threaded(void) {
    int fd = tcp();
    pthread_t thread;
    errno = pthread_create(&thread, NULL, dial_thread, &fd);
    if (errno) failed("pthread_create");
    pthread_join(thread, NULL);
    converse(fd, 0);
}

static void enter_network(void) {
    int net = open(needed(argument), O_RDONLY | O_CLOEXEC);
    check(net, "open");
    check(setns(net, CLONE_NEWNET), "setns");
}

// --- which

static void datagrams(void) {
    char text[64];
    int fd = socket(target.any.sa_family, SOCK_DGRAM, 0);
    check(fd, "socket");
    check(connect(fd, &target.any, target.length), "connect");
    check(send(fd, "x", 1, 0), "send");
    printf("{\"way\": \"%s\", \"ok\": true, \"peer\": \"%s\"}\n", way, end_of(fd, getpeername, text));
}

#ifdef __i386__
// The one system call that 32-bit programs had for all of these before Linux 4.3.
static int by_socketcall(void) {
    int fd = tcp();
    unsigned long arguments[] = {fd, (unsigned long)&target.any, target.length};
    check(syscall(SYS_socketcall, 3, arguments), "connect");
    return fd;
}
#endif

static int bound_at(const char *ip, const char *port) {
    int fd = tcp();
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
    bind_to(fd, parse(ip, port));
    return fd;
}

static int bound(void) { return bound_at(needed(argument), argument2 ? argument2 : "0"); }

// A second connection, from the same address and port, to ARGUMENT2 of loopback.
static void share_port(void) {
    int fd = dial(bound_at("127.0.0.1", needed(argument)));
    struct address there = parse("127.0.0.1", needed(argument2));
    check(connect(bound_at("127.0.0.1", argument), &there.any, there.length), "second connect");
    fprintf(stderr, "both are connected\n");
    converse(fd, 0);
}

static int to_device(void) {
    int fd = tcp();
    needed(argument);
    check(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, argument, strlen(argument)), "SO_BINDTODEVICE");
    return fd;
}

// Connects to ARGUMENT ARGUMENT2 after a connection to the target: is the device still that of the program?
static void device_again(void) {
    char name[IFNAMSIZ] = "";
    socklen_t length = sizeof name;
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    int fd = tcp();
    check(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 4), "SO_BINDTODEVICE");
    dial(fd);
    check(connect(fd, &none, sizeof none), "dissolve");
    target = parse(needed(argument), needed(argument2));
    dial(fd);
    check(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &length), "SO_BINDTODEVICE");
    also("device", "%s", name);
    converse(fd, 0);
}

static int unusual_source(int level_option) {
    int fd = tcp();
    set(fd, IPPROTO_IP, level_option, 1, "IP_TRANSPARENT or IP_FREEBIND");
    bind_to(fd, parse(needed(argument), "0"));
    return fd;
}

int main(int count, char **arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: ways WAY ADDRESS PORT [ARGUMENT [ARGUMENT]]\n");
        return 2;
    }
    self = arguments[0];
    way = arguments[1];
    target = parse(arguments[2], arguments[3]);
    argument = count > 4 ? arguments[4] : NULL;
    argument2 = count > 5 ? arguments[5] : NULL;
    signal(SIGPIPE, SIG_IGN);
#define IS(name) (strcmp(way, name) == 0)
    if (IS("blocking")) converse(dial(tcp()), 0);
    else if (IS("poll")) converse(by_poll(), 0);
    else if (IS("select")) converse(by_select(), 0);
    else if (IS("epoll-level")) by_epoll(0);
    else if (IS("epoll-edge")) by_epoll(EPOLLET);
    else if (IS("io_uring")) converse(by_io_uring(0), 0);
    else if (IS("io_uring-sqpoll")) converse(by_io_uring(IORING_SETUP_SQPOLL), 0);
    else if (IS("fastopen-sendto")) by_fastopen_sendto();
    else if (IS("fastopen-connect")) {
        char words[64];
        int fd = by_fastopen_connect();
        snprintf(words, sizeof words, "sent by %s", way);
        say(fd, words);
        char one[2];
        check(recv(fd, one, 1, MSG_PEEK), "recv");
        tell_syn_data(fd);
        converse(fd, 1);
    } else if (IS("mptcp")) converse(dial(open_socket(target.any.sa_family, 0, IPPROTO_MPTCP)), 0);
    else if (IS("bind")) converse(dial(bound()), 0);
    else if (IS("share-port")) share_port();
    else if (IS("bind-no-port")) {
        int fd = tcp();
        set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT");
        bind_to(fd, parse(needed(argument), "0"));
        converse(dial(fd), 0);
    } else if (IS("transparent")) converse(dial(unusual_source(IP_TRANSPARENT)), 0);
    else if (IS("freebind")) converse(dial(unusual_source(IP_FREEBIND)), 0);
    else if (IS("device")) converse(dial(to_device()), 0);
    else if (IS("device-again")) device_again();
    else if (IS("mark")) {
        int fd = tcp();
        set(fd, SOL_SOCKET, SO_MARK, 7, "SO_MARK");
        converse(dial(fd), 0);
    } else if (IS("again")) again();
    else if (IS("dissolve")) dissolve();
    else if (IS("mapped")) converse(dial(open_socket(AF_INET6, 0, 0)), 0);
    else if (IS("v6-only")) {
        int fd = open_socket(AF_INET6, 0, 0);
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1, "IPV6_V6ONLY");
        converse(dial(fd), 0);
    } else if (IS("udp")) datagrams();
    else if (IS("pass-before")) pass(0);
    else if (IS("pass-after")) pass(1);
    else if (IS("moved")) moved();
    else if (IS("fork")) forked();
    else if (IS("vfork")) vforked(arguments);
    else if (IS("thread")) threaded();
    else if (IS("setns")) {
        enter_network();
        converse(dial(tcp()), 0);
    } else if (IS("setns-after")) {
        int fd = tcp();
        enter_network();
        converse(dial(fd), 0);
    }
#ifdef __i386__
    else if (IS("socketcall")) converse(by_socketcall(), 0);
#endif
    else {
        fprintf(stderr, "ways: no way `%s`\n", way);
        return 2;
    }
    return 0;
}
