/* A matrix with what it was made of, for checks of the device table's matmul and embed. */
#ifndef WEFT_TESTS_KERNELS_MODEL_MATRIX_H
#define WEFT_TESTS_KERNELS_MODEL_MATRIX_H

#include "check.h"

struct model_matrix {
    enum weft_dtype dtype;
    enum weft_dtype source; /* of a quantised one: what rows are made of */
    uint32_t row_count;
    uint32_t col_count;
    bool is_gated;
    uint32_t leaf_count; /* 0: column-parallel */
    uint32_t add_count;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    unsigned char *rows; /* as in a file, owned */
    float *values;       /* [row_count][col_count] what they mean, owned */
};

/* Random even cuts (some leaves empty), and random merges of neighbours down to a random number of nodes. */
void model_matrix_cut(struct check *check, struct model_matrix *matrix, uint32_t leaf_count);
/* Random elements of the matrix's dtype; of its source when quantised, and then special blocks among them. */
void model_matrix_init(struct check *check, struct model_matrix *matrix);
void model_matrix_fini(struct model_matrix *matrix);
uint32_t model_matrix_nodes(const struct model_matrix *model);
/* Some rows, the columns of some leaves; no leaves, no values. */
void model_matrix_part(const struct model_matrix *whole, struct weft_range rows, struct weft_range columns,
                       struct model_matrix *part);
/* sums of the leaves, added up; the nodes that remain, in order. Returns their count. */
uint32_t model_matrix_combine(const struct model_matrix *model, float *sums, float *nodes);
struct weft_matrix_desc model_matrix_desc(const struct model_matrix *model);
/* On the device, written in two parts; as `desc` says from rows of `stride` bytes. */
struct weft_matrix *model_matrix_open(struct check *check, struct weft_device *device,
                                      const struct model_matrix *model);
struct weft_matrix *model_matrix_open_as(struct check *check, struct weft_device *device,
                                         const struct weft_matrix_desc *desc, const unsigned char *rows, size_t stride);
/* out <- matrix x, from and to host memory. */
void model_matrix_multiply(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                           const struct model_matrix *model, uint32_t token_count, float *x, float *bias, float *out);

#endif
