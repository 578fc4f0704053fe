/* Slurm's host lists: "rack[1-2]n[01-04],login" names rack1n01 ... rack2n04 and login. Pure text, no scontrol. */
#ifndef WEFT_LAUNCH_HOSTLIST_H
#define WEFT_LAUNCH_HOSTLIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How many hosts the list names; 0: none, or not a host list. At most 65536. */
uint32_t weft_hostlist_count(const char *list);

/* The name of host `index`, in Slurm's order, into out[size]; false when there is none or it does not fit. */
bool weft_hostlist_get(const char *list, uint32_t index, char *out, size_t size);

/*
 * The host of `rank` where hosts take turns in blocks: per_host is Slurm's "2(x3),1" (two ranks on each of the first
 * three hosts, one on the fourth). False when the text is none, or the rank lies behind it.
 */
bool weft_hostlist_block(const char *per_host, uint32_t rank, uint32_t *host_out);

#endif
