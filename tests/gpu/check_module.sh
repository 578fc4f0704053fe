#!/usr/bin/env bash
# check_module.sh FILE: what the CUDA module exports and needs. Its border is one function, and it must load on hosts
# without toolkit and driver.
set -eu
module=$1
failed=0

complain()
{
    echo "$module: $1"
    failed=1
}

exported=$(nm -D --defined-only "$module" | awk '{print $3}' | tr '\n' ' ')
[ "$exported" = "weft_cuda_module " ] || complain "exports: $exported(expected weft_cuda_module alone)"
needed=$(readelf -d "$module" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')
for library in $needed; do
    case $library in
        libc.so.*|libm.so.*|libstdc++.so.*|libgcc_s.so.*|ld-linux-*|libdl.so.*|librt.so.*|libpthread.so.*) ;;
        *) complain "needs $library" ;;
    esac
done
undefined=$(nm -D --undefined-only "$module" | awk '$1 == "U" {print $2}' | grep -E '^(weft_|cu[A-Z]|cuda[A-Z])' || true)
[ -z "$undefined" ] || complain "undefined: $undefined"
size=$(stat -c %s "$module")
echo "$module: $((size / 1024)) KiB, exports $exported, needs $needed"
exit $failed
