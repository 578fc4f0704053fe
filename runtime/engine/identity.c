/* Fingerprints by SHA-256 (libcrypto). */
#include "engine/identity.h"

#include <dirent.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/options.h"
#include "weft/log.h"

enum { PATH_SIZE = 4096, SAMPLE_SIZE = 64 * 1024 };

void weft_sha256_text(const uint8_t *digest, char *text)
{
    for (size_t i = 0; i < WEFT_SHA256_SIZE; i++) {
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    }
}

static bool has_suffix(const char *name, const char *suffix)
{
    size_t size = strlen(name);

    return size >= strlen(suffix) && strcmp(name + size - strlen(suffix), suffix) == 0;
}

/* Weights, and what decides how they are read and used. */
static int is_part(const struct dirent *entry)
{
    return has_suffix(entry->d_name, ".safetensors") || has_suffix(entry->d_name, ".safetensors.index.json") ||
           strcmp(entry->d_name, "config.json") == 0 || strcmp(entry->d_name, "generation_config.json") == 0;
}

static enum weft_status add_file(EVP_MD_CTX *digest, const char *folder, const char *name, char *buffer)
{
    char path[PATH_SIZE];
    char head[512];
    enum weft_status status = WEFT_OK;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) != 0) {
        status = weft_status_of_errno(errno);
        weft_log(WEFT_LOG_ERROR, "engine/identity", "%s: %s", path, strerror(errno));
        if (file != NULL) {
            fclose(file);
        }
        return status;
    }
    snprintf(head, sizeof(head), "%s %lld;", name, (long long)info.st_size);
    EVP_DigestUpdate(digest, head, strlen(head));
    size_t got = fread(buffer, 1, SAMPLE_SIZE, file);
    EVP_DigestUpdate(digest, buffer, got);
    if (info.st_size > SAMPLE_SIZE && fseeko(file, -(off_t)SAMPLE_SIZE, SEEK_END) == 0) {
        got = fread(buffer, 1, SAMPLE_SIZE, file);
        EVP_DigestUpdate(digest, buffer, got);
    }
    if (ferror(file)) {
        weft_log(WEFT_LOG_ERROR, "engine/identity", "%s: read error", path);
        status = WEFT_ERR_IO;
    }
    fclose(file);
    return status;
}

static enum weft_status digest_model(EVP_MD_CTX *digest, const char *folder, char *buffer)
{
    struct dirent **entries = NULL;
    enum weft_status status = WEFT_OK;
    int count = scandir(folder, &entries, is_part, alphasort);

    if (count < 0) {
        status = weft_status_of_errno(errno);
        weft_log(WEFT_LOG_ERROR, "engine/identity", "%s: %s", folder, strerror(errno));
        return status;
    }
    for (int i = 0; i < count; i++) {
        if (status == WEFT_OK) {
            status = add_file(digest, folder, entries[i]->d_name, buffer);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* Options that shape plans or bits. Not those of one rank or host: threads, memory, CPU level,
 * paths; what each rank runs on is the leader's to check (devices.c). */
static void digest_options(EVP_MD_CTX *digest, const struct weft_engine_options *options)
{
    char text[1024];

    snprintf(text, sizeof(text),
             "weft %s leaves %u numerics %s kv %s quantize %s comm %s context %u sequences %u cache %u chunk %u "
             "candidates %u weights %s%s shares%s",
             weft_version(), options->leaf_count, options->numerics, options->kv_dtype, options->quantize,
             options->comm, options->context_length, options->sequence_count_max, options->kv_token_count,
             options->prefill_chunk, options->candidate_count, options->weights, options->is_eager ? " eager" : "",
             options->is_share_measured ? " measured" : "");
    EVP_DigestUpdate(digest, text, strlen(text));
    for (uint32_t i = 0; i < options->share_count; i++) {
        snprintf(text, sizeof(text), " %u", options->shares[i]);
        EVP_DigestUpdate(digest, text, strlen(text));
    }
}

enum weft_status weft_model_folder_check(const char *folder)
{
    struct stat info;

    if (stat(folder, &info) != 0 || !S_ISDIR(info.st_mode)) {
        weft_log(WEFT_LOG_ERROR, "engine/identity", "%s: no such model folder", folder);
        return WEFT_ERR_MISSING;
    }
    return WEFT_OK;
}

enum weft_status weft_identity_read_options(const struct weft_engine_options *options,
                                            struct weft_identity *identity_out)
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();

    if (digest == NULL || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1) {
        weft_log(WEFT_LOG_ERROR, "engine/identity", "cannot set up SHA-256");
        EVP_MD_CTX_free(digest);
        return WEFT_ERR_MEMORY;
    }
    digest_options(digest, options);
    EVP_DigestFinal_ex(digest, identity_out->options, NULL);
    EVP_MD_CTX_free(digest);
    return WEFT_OK;
}

enum weft_status weft_identity_read(const struct weft_engine_options *options, struct weft_identity *identity_out)
{
    struct weft_identity identity;
    enum weft_status status = WEFT_ERR_MEMORY;
    char *buffer = NULL;
    EVP_MD_CTX *digest = NULL;

    memset(&identity, 0, sizeof(identity));
    WEFT_TRY(weft_model_folder_check(options->model));
    WEFT_TRY(weft_model_config_read(options->model, &identity.config));
    identity.config.quantise = weft_options_quantise(options);
    buffer = malloc(SAMPLE_SIZE);
    digest = EVP_MD_CTX_new();
    if (buffer == NULL || digest == NULL || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1) {
        weft_log(WEFT_LOG_ERROR, "engine/identity", "cannot set up SHA-256");
        goto free_all;
    }
    status = digest_model(digest, options->model, buffer);
    EVP_DigestFinal_ex(digest, identity.model, NULL);
    if (status == WEFT_OK) {
        status = weft_identity_read_options(options, &identity);
    }
    if (status == WEFT_OK) {
        *identity_out = identity;
    }
free_all:
    EVP_MD_CTX_free(digest);
    free(buffer);
    return status;
}
