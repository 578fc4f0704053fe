/*
 * GET /health over the test double of the engine, which stays where it is after a loss: in a real process the time
 * between a loss and the exit is too short to look.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve/http_routes.h"
#include "serve/http_server.h"
#include "serve/service.h"

static void on_state(void *context, enum weft_service_state state)
{
    (void)context;
    (void)state;
}

static void on_event(void *context, const struct weft_event *event)
{
    (void)context;
    (void)event;
}

/* answer_out <- the whole answer, as text. */
static void get_health(const struct weft_http_server *server, char *answer_out, size_t size)
{
    static const char request[] = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)weft_http_server_port(server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int link = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t used = 0;
    ssize_t got;

    assert_true(link >= 0);
    assert_int_equal(connect(link, (const struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(send(link, request, sizeof(request) - 1, MSG_NOSIGNAL), sizeof(request) - 1);
    while (used + 1 < size && (got = recv(link, answer_out + used, size - 1 - used, 0)) > 0) {
        used += (size_t)got;
    }
    answer_out[used] = '\0';
    close(link);
}

static void test_a_lost_group_is_503_and_says_why(void **state)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;
    struct weft_service *service = NULL;
    struct weft_http_server *http = NULL;
    struct weft_request request;
    struct weft_service_job job = {.on_event = on_event};
    char reason[WEFT_SERVICE_REASON_SIZE];
    char answer[4096];

    (void)state;
    weft_engine_options_init(&options);
    options.model = "fake:";
    assert_int_equal(weft_engine_open(&options, &engine), WEFT_OK);
    assert_int_equal(weft_service_open(on_state, NULL, &service), WEFT_OK);
    assert_int_equal(weft_http_open("127.0.0.1:0", service, &http), WEFT_OK);
    get_health(http, answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 503 "));
    assert_non_null(strstr(answer, "\r\n\r\nthe model is loading\n"));
    assert_int_equal(weft_service_start(service, engine), WEFT_OK);
    get_health(http, answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 200 "));
    assert_non_null(strstr(answer, "\r\n\r\nserving\n"));

    weft_request_init(&request);
    request.prompt = "<fail>";
    request.prompt_size = strlen(request.prompt);
    request.max_tokens = 50;
    assert_int_equal(weft_service_submit(service, &request, &job), WEFT_OK);
    while (weft_service_state(service) != WEFT_SERVICE_FAILED) {
        get_health(http, answer, sizeof(answer)); /* CTest's limit ends a wait for nothing */
    }
    for (int i = 0; i < 2; i++) { /* the second time the process is on its way out */
        get_health(http, answer, sizeof(answer));
        assert_non_null(strstr(answer, "HTTP/1.1 503 "));
        weft_service_reason(service, reason);
        assert_int_equal(strncmp(reason, "rank 1 on ", 10), 0);
        assert_non_null(strstr(answer, reason));
        weft_service_drain(service);
    }
    weft_http_server_close(&http);
    weft_service_close(&service);
    weft_engine_close(&engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_lost_group_is_503_and_says_why)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
