/* What the kernel knows of this process. */
#ifndef WEFT_SERVE_PROCESS_H
#define WEFT_SERVE_PROCESS_H

struct weft_process {
    double cpu_seconds;   /* user and system */
    double start_seconds; /* since 1970 */
    double resident_size; /* bytes */
    double virtual_size;  /* bytes */
    double fd_count;
    double fd_max;
};

/* Zero stands for what cannot be read. */
void weft_process_read(struct weft_process *out);

#endif
