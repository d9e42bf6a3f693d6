#include "count.h"

#include <ctype.h>

void count(struct counts *counts, const char *text, size_t len, int *in_word) {
    for (size_t at = 0; at < len; at++) {
        int space = isspace((unsigned char)text[at]) != 0;
        counts->lines += text[at] == '\n';
        counts->words += !space && !*in_word;
        *in_word = !space;
    }
    counts->bytes += len;
}
