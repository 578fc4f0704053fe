/* Faults of the NCCL stub (nccl_stub.c), set by a test before it starts ranks. */
#ifndef WEFT_TESTS_COMM_NCCL_STUB_H
#define WEFT_TESTS_COMM_NCCL_STUB_H

#include <stdint.h>

enum nccl_stub_fault {
    NCCL_STUB_NO_FAULT,
    NCCL_STUB_INIT_ERROR,    /* the victim's communicator cannot be made */
    NCCL_STUB_ASYNC_ERROR,   /* after group_index groups on its stream the victim's communicator reports an error */
    NCCL_STUB_NEVER_ISSUED,  /* the group_index-th group that the victim issues stays "in progress" */
    NCCL_STUB_STUCK,         /* the group_index-th group on the victim's stream never ends there, unless aborted */
    NCCL_STUB_REMOTE_ERRORS, /* whoever waits for a dead process hears of it, as over a network */
};

struct nccl_stub_faults {
    enum nccl_stub_fault kind;
    int victim; /* rank; of abort_ms too */
    uint64_t group_index;
    uint32_t abort_ms; /* how long the victim's abort takes before it has any effect */
    int version;       /* that the library says it has; 0: that of its header */
};

/* "nccl_stub_faults" of the library. */
typedef struct nccl_stub_faults *nccl_stub_faults_function(void);
/* "nccl_stub_issued_count": groups that this process has put into streams and graphs. */
typedef uint64_t nccl_stub_issued_count_function(void);

#endif
