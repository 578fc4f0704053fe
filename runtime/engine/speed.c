/* Measuring with the device's own multiplication. */
#include "engine/speed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "model/quantise.h"
#include "weft/f8.h"
#include "weft/log.h"

enum {
    PROBE_SIZE = 192 << 20, /* several times the usual share of a core in its last cache */
    MATRIX_MAX = 48,        /* of 4.5 MiB, the smallest kind */
    ROW_COUNT = 2048,       /* 16 MiB each as bf16 */
    COL_COUNT = 4096,
    ROW_STRIP = 64,
    ROUND_COUNT = 3,
};

struct weft_speed_probe {
    struct weft_device *device;
    struct weft_matrix *matrices[MATRIX_MAX];
    uint32_t count;
    size_t matrix_size; /* bytes */
    float *x;           /* [COL_COUNT] */
    float *y;           /* [ROW_COUNT] */
};

/* rows[ROW_STRIP] of zeros, as a matrix is given them; scales of FP8 are ordinary numbers, each row's its own if it has
 * just one: what is shared is multiplied faster. */
static void fill_rows(const struct weft_matrix_desc *desc, unsigned char *rows, size_t row_size)
{
    uint32_t scale_count = desc->dtype == WEFT_F8_E4M3 ? weft_f8_scale_count(COL_COUNT, desc->scale_cols, 0) : 0;

    for (uint32_t row = 0; row < ROW_STRIP; row++) {
        float scale = desc->scale_cols == 0 ? 1.0f + (float)row : 1.0f;

        for (uint32_t i = 0; i < scale_count; i++) {
            memcpy(rows + row * row_size + i * sizeof(scale), &scale, sizeof(scale));
        }
    }
}

static enum weft_status fill_probe(struct weft_speed_probe *probe, const struct weft_speed_weights *weights)
{
    const struct weft_matrix_desc desc = {.dtype = weights->dtype,
                                          .source = WEFT_BF16,
                                          .scale_cols = weights->scale_cols,
                                          .row_count = ROW_COUNT,
                                          .col_count = COL_COUNT};
    size_t row_size = weights->dtype == WEFT_F8_E4M3 ? weft_f8_row_size(COL_COUNT, weights->scale_cols, 0)
                                                     : COL_COUNT * weft_dtype_size(WEFT_BF16);
    unsigned char *rows = calloc(ROW_STRIP, row_size);
    enum weft_status status = WEFT_OK;

    probe->x = weft_device_alloc(probe->device, COL_COUNT * sizeof(float));
    probe->y = weft_device_alloc(probe->device, ROW_COUNT * sizeof(float));
    if (rows == NULL || probe->x == NULL || probe->y == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/speed", "out of memory for measuring");
        status = WEFT_ERR_MEMORY;
    }
    if (rows != NULL) {
        fill_rows(&desc, rows, row_size);
    }
    probe->matrix_size = weft_matrix_size(probe->device, &desc);
    probe->count = (uint32_t)((PROBE_SIZE + probe->matrix_size - 1) / probe->matrix_size);
    probe->count = probe->count < MATRIX_MAX ? probe->count : MATRIX_MAX;
    for (uint32_t i = 0; i < probe->count && status == WEFT_OK; i++) {
        status = weft_matrix_open(probe->device, &desc, &probe->matrices[i]);
        for (uint32_t row = 0; row < ROW_COUNT && status == WEFT_OK; row += ROW_STRIP) {
            status = weft_matrix_write_rows(probe->device, probe->matrices[i], row, ROW_STRIP, rows, row_size);
        }
    }
    free(rows);
    return status;
}

enum weft_status weft_speed_probe_open(struct weft_device *device, const struct weft_speed_weights *weights,
                                       struct weft_speed_probe **out)
{
    struct weft_speed_probe *probe = calloc(1, sizeof(*probe));
    enum weft_status status;

    if (probe == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/speed", "out of memory for measuring");
        return WEFT_ERR_MEMORY;
    }
    probe->device = device;
    status = fill_probe(probe, weights);
    if (status != WEFT_OK) {
        weft_speed_probe_close(&probe);
        return status;
    }
    *out = probe;
    return WEFT_OK;
}

void weft_speed_probe_close(struct weft_speed_probe **probe)
{
    if (*probe == NULL) {
        return;
    }
    for (uint32_t i = 0; i < (*probe)->count; i++) {
        if ((*probe)->matrices[i] != NULL) {
            weft_matrix_close((*probe)->device, &(*probe)->matrices[i]);
        }
    }
    weft_device_free((*probe)->device, (*probe)->x);
    weft_device_free((*probe)->device, (*probe)->y);
    free(*probe);
    *probe = NULL;
}

enum weft_status weft_speed_probe_run(struct weft_speed_probe *probe, double *seconds_out)
{
    int64_t begin = weft_clock_ns();

    for (uint32_t i = 0; i < probe->count; i++) {
        weft_device_matmul(probe->device, probe->matrices[i], probe->x, 1, NULL, probe->y);
    }
    WEFT_TRY(weft_device_sync(probe->device));
    *seconds_out = (double)(weft_clock_ns() - begin) * 1e-9;
    return WEFT_OK;
}

double weft_speed_probe_size(const struct weft_speed_probe *probe)
{
    return (double)probe->count * (double)probe->matrix_size;
}

struct weft_speed_weights weft_speed_weights(enum weft_quantise quantise, enum weft_dtype stored, uint32_t scale_cols)
{
    enum weft_dtype dtype = weft_quantise_layer(quantise, stored == WEFT_F8_E4M3 ? WEFT_F8_E4M3 : WEFT_BF16);

    return (struct weft_speed_weights){.dtype = dtype, .scale_cols = dtype == WEFT_F8_E4M3 ? scale_cols : 0};
}

enum weft_status weft_speed_measure(struct weft_device *device, const struct weft_speed_weights *weights,
                                    double *bytes_per_second_out)
{
    struct weft_speed_probe *probe = NULL;
    double best = 0, size = 0;
    enum weft_status status = weft_speed_probe_open(device, weights, &probe);

    for (int round = 0; round < ROUND_COUNT && status == WEFT_OK; round++) {
        double seconds = 0;

        status = weft_speed_probe_run(probe, &seconds);
        best = round == 0 || seconds < best ? seconds : best;
    }
    if (status == WEFT_OK) {
        size = weft_speed_probe_size(probe);
    }
    weft_speed_probe_close(&probe);
    if (status == WEFT_OK) {
        *bytes_per_second_out = size / (best > 1e-9 ? best : 1e-9);
    }
    return status;
}

void weft_speed_shares(const double *speeds, uint32_t rank_count, uint32_t *shares_out)
{
    double fastest = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        fastest = speeds[r] > fastest ? speeds[r] : fastest;
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        uint32_t share = (uint32_t)(speeds[r] / fastest * 1000 + 0.5);
        shares_out[r] = share > 0 ? share : 1;
    }
}

/* ---- between ranks ---- */

static enum weft_status hear_speed(const struct weft_speed_args *args, uint32_t rank, double *speed_out)
{
    struct weft_speed speed;
    enum weft_status status = weft_speed_recv(args->bootstrap, rank, args->timeout_ms, &speed);

    if (status == WEFT_ERR_TIMEOUT) {
        weft_bootstrap_abort(args->bootstrap, rank, "did not say how fast it is");
    }
    WEFT_TRY(status);
    if (speed.status != WEFT_OK) {
        weft_log(WEFT_LOG_ERROR, "engine/speed", "rank %u cannot measure its speed: %s", rank, speed.reason);
        return WEFT_ERR_IO;
    }
    *speed_out = speed.bytes_per_second;
    return WEFT_OK;
}

enum weft_status weft_speed_ask(const struct weft_speed_args *args, double *speeds_out)
{
    for (uint32_t r = 1; r < args->rank_count; r++) {
        const struct weft_setup probe = {.is_probe = true, .seat = args->seats[r], .weights = args->weights};
        WEFT_TRY(weft_setup_send(args->bootstrap, r, &probe, args->timeout_ms));
    }
    enum weft_status status = weft_speed_measure(args->device, &args->weights, &speeds_out[0]);
    for (uint32_t r = 1; r < args->rank_count; r++) { /* all of them: they say it in any case */
        enum weft_status heard = hear_speed(args, r, &speeds_out[r]);
        status = status == WEFT_OK ? heard : status;
    }
    return status;
}

enum weft_status weft_speed_answer(struct weft_bootstrap *bootstrap, struct weft_device *device,
                                   const struct weft_speed_weights *weights, enum weft_status status,
                                   uint32_t timeout_ms)
{
    struct weft_speed speed = {.status = status};

    if (status == WEFT_OK) {
        speed.status = weft_speed_measure(device, weights, &speed.bytes_per_second);
    }
    if (speed.status != WEFT_OK) {
        snprintf(speed.reason, sizeof(speed.reason), "%s", weft_log_last_error());
    }
    return weft_speed_send(bootstrap, &speed, timeout_ms);
}
