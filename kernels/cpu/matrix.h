/* A packed weight matrix, shared by matrix.c (packing), matrix_quant.c and matrix_f8.c (of such ones) and matmul.c. */
#ifndef WEFT_CPU_MATRIX_H
#define WEFT_CPU_MATRIX_H

#include "cpu/device_cpu.h"

struct weft_matrix {
    enum weft_dtype dtype;
    enum weft_dtype source; /* of rows written to a quantised matrix */
    uint32_t scale_cols;    /* f8_e4m3 */
    uint32_t scale_phase;
    uint32_t row_count;
    uint32_t gate_count; /* F of a gated matrix: panels of gates and of what they let through take turns; 0: none */
    uint32_t col_count;
    uint32_t leaf_count; /* 1 for a column-parallel matrix */
    uint32_t add_count;
    uint32_t node_count;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    uint8_t node_slots[WEFT_LEAF_COUNT_MAX];   /* [node_count] leaf slot in which each node ends up */
    size_t leaf_offsets[WEFT_LEAF_COUNT_MAX];  /* [leaf_count] bytes from the start of a panel; even columns in bf16 */
    uint32_t leaf_blocks[WEFT_LEAF_COUNT_MAX]; /* [leaf_count] first block of each leaf, when quantised */
    uint32_t block_count;                      /* of all leaves, when quantised */
    size_t panel_size;                         /* bytes */
    unsigned char *panels;                     /* [panel_count][panel_size], owned */
};

/* Of row_count rows, gate_count of them gates. */
static inline uint32_t weft_cpu_panel_count(uint32_t row_count, uint32_t gate_count)
{
    return gate_count > 0 ? 2 * weft_ceil_div(gate_count, WEFT_LANES) : weft_ceil_div(row_count, WEFT_LANES);
}

/* Elements of the product's rows. */
static inline uint32_t weft_cpu_out_width(const struct weft_matrix *matrix)
{
    return matrix->gate_count > 0 ? matrix->gate_count : matrix->row_count;
}

/*
 * Quantises rows[0 .. lane_count) of the matrix's source type (may be unaligned) into rows first_lane, first_lane + 1,
 * ... of the panel.
 */
void weft_cpu_quant_pack(const struct weft_matrix *matrix, const struct weft_cpu_kernels *kernels,
                         const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                         unsigned char *panel);

/* Bytes of a panel of E4M3. */
size_t weft_cpu_f8_panel_size(const struct weft_matrix_desc *desc);
/* As weft_cpu_quant_pack(): rows as weft/f8.h has them. */
void weft_cpu_f8_pack(const struct weft_matrix *matrix, const unsigned char *const *rows, uint32_t first_lane,
                      uint32_t lane_count, unsigned char *panel);
/* out[col_count] <- row `lane` of the panel. */
void weft_cpu_f8_unpack_row(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t lane, float *out);
/* pairs[ceil(columns / 2)][16] <- columns of the panel from an even one on, as bf16 pairs. */
void weft_cpu_f8_unpack(const struct weft_matrix *matrix, const struct weft_cpu_kernels *kernels,
                        const unsigned char *panel, struct weft_range columns, uint32_t *pairs);

/* out[col_count] <- row `lane` of the panel. */
void weft_cpu_quant_unpack(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t lane, float *out);

/* Tokens whose activations the device's scratch holds at a time; at least 1. */
uint32_t weft_cpu_quant_tokens_max(const struct weft_matrix *matrix);

/* The device's quant_x [token_count][block_count] <- x [token_count][col_count], leaf by leaf, by all threads. */
void weft_cpu_quant_activations(struct weft_cpu_device *device, const struct weft_matrix *matrix, const float *x,
                                uint32_t token_count);

#endif
