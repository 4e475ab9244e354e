/* The addresses of this host that peers wrote to at a wildcard socket: wavry_relay.engine.local_addresses.py. */
#ifndef WAVRY_LOCAL_H
#define WAVRY_LOCAL_H

#include "tables.h"

#include <sys/socket.h>

/* The local number of the address that a datagram was sent to at a listen address; a wildcard
 * socket says it in a control message. */
uint32_t wv_local_number(struct wv_tables *tables, uint32_t listen, const struct cmsghdr *asked);

/* What a local number stands for; NULL where it is that of a listen address. */
static inline const struct wv_local_address *wv_local_address(const struct wv_tables *tables,
                                                              uint32_t number) {
    if (number < WV_FIRST_LOCAL || number - WV_FIRST_LOCAL >= WV_LOCAL_ADDRESSES) return NULL;
    const struct wv_local_address *entry = &tables->locals[number - WV_FIRST_LOCAL];
    return load64(&entry->origin) == 0 ? NULL : entry;
}

/* Number of the listen address. */
static inline uint32_t wv_local_listen(const struct wv_local_address *local) {
    return (uint32_t)local->origin - 1;
}

/* Bytes of the control message that lets a socket of this family send from there. */
size_t wv_local_control(const struct wv_local_address *local, int family, struct cmsghdr *to);
#define WV_LOCAL_CONTROL_SPACE CMSG_SPACE(20) /* the larger of both forms */

#endif
