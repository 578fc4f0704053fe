/* An engine's life in a command: opened on every rank, led on one, closed on all. */
#include "command.h"
#include "signals.h"

/* After a signal to all ranks, a leader that is gone has left, however abruptly on a busy machine: its status tells. */
static int work(struct weft_engine *engine)
{
    bool is_done = weft_engine_work(engine) == WEFT_OK;

    return is_done || (weft_signals_caught() != 0 && weft_engine_failed_rank(engine) == 0) ? WEFT_EXIT_OK
                                                                                           : WEFT_EXIT_FAILURE;
}

static int live(struct weft_setup *setup, struct weft_terminal *terminal, uint32_t stop_limit_ms, weft_lead_fn *lead,
                void *context)
{
    struct weft_engine *engine = NULL;
    enum weft_status status;
    int code;

    if (!weft_signals_open(stop_limit_ms, weft_setup_is_worker(setup))) {
        return WEFT_EXIT_FAILURE; /* said */
    }
    status = weft_engine_open(&setup->options, &engine);
    if (status != WEFT_OK) {
        return weft_exit_code(status); /* logged */
    }
    weft_terminal_clear(terminal);
    weft_setup_formed(setup);
    weft_signals_running(weft_engine_is_leader(engine));
    if (weft_engine_is_leader(engine)) {
        code = lead(engine, context);
    } else {
        weft_terminal_mute(terminal);
        code = work(engine);
    }
    weft_engine_close(&engine);
    return code;
}

static void leave(void *context)
{
    (void)context;
    weft_signals_leave();
}

int weft_command_lead(struct weft_setup *setup, struct weft_terminal *terminal, uint32_t stop_limit_ms,
                      weft_lead_fn *lead, void *context)
{
    setup->options.progress = weft_terminal_progress;
    setup->options.memory_table = weft_terminal_line;
    setup->options.leave = leave;
    setup->options.callback_context = terminal;
    int code = live(setup, terminal, stop_limit_ms, lead, context);
    weft_setup_close(setup);
    return code;
}
