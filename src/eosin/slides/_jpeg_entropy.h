/* Entropy decoding of a baseline JPEG tile of which a rectangle is wanted: coefficients outside it are
 * passed over, several codes by one look at a table.
 *
 * It takes the place of libjpeg's own decode_mcu (jpegint.h), which decodes every code alone, wanted or
 * not. Only what is sound is served: at anything odd `odd` is called, and the tile is left to libjpeg.
 * Codes, their lengths and values: ITU-T T.81, annexes C and F.2.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#if __has_include(<jpegint.h>)
#include <jpegint.h>
#else /* not every package ships it: its members as they have been since libjpeg 6b */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr jpeg);
    boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
};
#endif
#if JPEG_LIB_VERSION >= 70
#define SCALED_SIZE DCT_h_scaled_size
#define LEAST_SCALED_SIZE min_DCT_h_scaled_size
#else
#define SCALED_SIZE DCT_scaled_size
#define LEAST_SCALED_SIZE min_DCT_scaled_size
#endif

#define LOOK_BITS 11          /* of a code with its value, looked up at once */
#define PASS_BITS 12          /* of codes passed over at once */
#define NUM_LOOKS 5        /* for which the 56 bits after one refill are enough */
#define ENDS 128           /* how far the end of a block advances: beyond every coefficient */
#define FOLLOWS 32         /* among num_bits: the value is not yet read, `value` is the number of its bits */
#define MAX_CODE_BITS 16
#define NUM_TABLES 8       /* more than the six that three components can have */
#define READ_AHEAD_BYTES 8
#define MARGIN_BYTES (512 + 2 * READ_AHEAD_BYTES) /* a block: 64 codes and values of at most 31 bits */

/* A code and, where that is in sight, its value: their bits, and how many coefficients it advances. */
typedef struct { int16_t value; uint8_t advance, num_bits; } Code;
/* Codes with their values: how many bits they have together, how far they advance, and how many coefficients
 * a block must still have for them; more than any has where there are no codes. */
typedef struct { uint8_t num_bits, advance, num_needed, unused; } Codes;

typedef struct {
    JHUFF_TBL source;
    int is_dc, num_uses;
    unsigned long last_use;
    int32_t beyond[MAX_CODE_BITS + 1]; /* the first code longer than those of a length, in 16 bits */
    int32_t offset[MAX_CODE_BITS + 1]; /* from a code of a length to its place among the symbols */
    uint8_t code_bits[1 << LOOK_BITS];
    Code look[1 << LOOK_BITS];
    Codes pass[1 << PASS_BITS];
} HuffmanTable;

/* Tables of the tiles before: most tiles of a slide have the same. */
typedef struct HuffmanTables {
    HuffmanTable tables[NUM_TABLES];
    unsigned long num_tiles;
    struct HuffmanTables *next;
} HuffmanTables;

typedef struct {
    uint64_t bits; /* the next ones, from the top */
    int num_bits;
    const unsigned char *at;
} BitReader;

typedef struct {
    j_decompress_ptr jpeg;
    HuffmanTable *dc[D_MAX_BLOCKS_IN_MCU], *ac[D_MAX_BLOCKS_IN_MCU];
    int component[D_MAX_BLOCKS_IN_MCU], is_dc_only[D_MAX_BLOCKS_IN_MCU];
    JDIMENSION column, first_column, last_column; /* of MCUs; the last two are wanted */
    int dc_value[MAX_COMPS_IN_SCAN];
    BitReader reader;
    unsigned char *data;
    const unsigned char *end;
    void (*odd)(j_common_ptr jpeg);
} EntropyDecoder;

static const uint8_t NATURAL_ORDER[DCTSIZE2] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* At least 56 bits, with zeros behind the end of the data. */
static inline void refill(BitReader *reader)
{
    uint64_t next;

    memcpy(&next, reader->at, sizeof next);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    next = __builtin_bswap64(next);
#endif
    reader->bits |= next >> reader->num_bits;
    reader->at += (63 - reader->num_bits) >> 3;
    reader->num_bits |= 56;
}

static inline void consume(BitReader *reader, int num_bits)
{
    reader->bits <<= num_bits;
    reader->num_bits -= num_bits;
}

/* F.2.2.1: values whose first bit is 0 are negative. */
static inline int extended(uint64_t bits, int num_bits)
{
    int value = (int)(bits >> (64 - num_bits));

    return value + ((((int)(bits >> 63)) - 1) & (1 - (1 << num_bits)));
}

static Code code_of(const HuffmanTable *table, int num_bits, int symbol)
{
    Code code = {(int16_t)(symbol & 15), ENDS, (uint8_t)num_bits};
    int run = symbol >> 4;

    if (code.value)
        code.num_bits |= FOLLOWS;
    if (table->is_dc || code.value || run == 15)
        code.advance = (uint8_t)(run + 1);
    return code;
}

/* A code that is longer than what is looked up, or none. */
static Code long_code(const HuffmanTable *table, uint64_t bits)
{
    const Code none = {0, 0, 0};
    int32_t start = (int32_t)(bits >> (64 - MAX_CODE_BITS));
    int num_bits = LOOK_BITS + 1;

    while (num_bits <= MAX_CODE_BITS && start >= table->beyond[num_bits])
        num_bits++;
    if (num_bits > MAX_CODE_BITS)
        return none;
    start = (start >> (MAX_CODE_BITS - num_bits)) + table->offset[num_bits];
    return code_of(table, num_bits, table->source.huffval[start & 255]);
}

static void fill_look(HuffmanTable *table)
{
    int num_bits, i, place = 0, code = 0;

    memset(table->look, 0, sizeof table->look);
    for (num_bits = 1; num_bits <= MAX_CODE_BITS; num_bits++) {
        table->offset[num_bits] = place - code;
        for (i = 0; i < table->source.bits[num_bits]; i++, code++, place++) {
            Code found = code_of(table, num_bits, table->source.huffval[place & 255]);
            int free_bits = LOOK_BITS - num_bits, rest;

            for (rest = 0; free_bits >= 0 && rest < 1 << free_bits; rest++) {
                int place_bits = (code << free_bits | rest) & ((1 << LOOK_BITS) - 1);
                Code *look = &table->look[place_bits];

                *look = found;
                table->code_bits[place_bits] = (uint8_t)num_bits;
                if (found.num_bits & FOLLOWS && found.value <= free_bits) {
                    look->value = (int16_t)extended((uint64_t)rest << (64 - free_bits), found.value);
                    look->num_bits = (uint8_t)(num_bits + found.value);
                }
            }
        }
        table->beyond[num_bits] = code << (MAX_CODE_BITS - num_bits);
        code <<= 1;
    }
}

/* The codes that lie in the bits looked at; of the last one the value may lie behind them. */
static void fill_pass(HuffmanTable *table)
{
    int start;

    for (start = 0; start < 1 << PASS_BITS; start++) {
        Codes codes = {0, 0, ENDS, 0};

        while (codes.num_bits < PASS_BITS && codes.advance < ENDS) {
            int left = PASS_BITS - codes.num_bits;
            uint64_t bits = (uint64_t)start << (64 - left);
            Code code = table->look[bits >> (64 - LOOK_BITS)];
            int code_bits = table->code_bits[bits >> (64 - LOOK_BITS)];

            if (!code_bits || code_bits > left || codes.advance + code.advance % ENDS >= DCTSIZE2)
                break;
            codes.num_bits = (uint8_t)(codes.num_bits + code.num_bits % FOLLOWS);
            if (code.num_bits & FOLLOWS)
                codes.num_bits = (uint8_t)(codes.num_bits + code.value);
            codes.advance = (uint8_t)(codes.advance + code.advance);
            codes.num_needed = codes.advance < ENDS ? codes.advance : codes.advance - ENDS + 1;
        }
        table->pass[start] = codes;
    }
}

/* The table, made at first sight; for passing over at the second, since that takes longer than it saves in
 * a tile whose tables are its own. */
static HuffmanTable *table_of(HuffmanTables *kept, const JHUFF_TBL *source, int is_dc)
{
    HuffmanTable *table, *oldest = kept->tables;

    for (table = kept->tables; table < kept->tables + NUM_TABLES; table++) {
        if (table->num_uses && table->is_dc == is_dc && !memcmp(table->source.bits, source->bits, sizeof source->bits)
            && !memcmp(table->source.huffval, source->huffval, sizeof source->huffval)) {
            table->last_use = kept->num_tiles;
            if (++table->num_uses == 2 && !is_dc)
                fill_pass(table);
            return table;
        }
        if (table->last_use < oldest->last_use)
            oldest = table;
    }
    memset(oldest, 0, sizeof *oldest);
    memset(oldest->pass, ENDS, sizeof oldest->pass);
    oldest->source = *source;
    oldest->is_dc = is_dc;
    oldest->num_uses = 1;
    oldest->last_use = kept->num_tiles;
    fill_look(oldest);
    return oldest;
}

/* The next code and its value; one of no bits where there is none. */
static inline Code next_code(BitReader *reader, const HuffmanTable *table)
{
    Code code = table->look[reader->bits >> (64 - LOOK_BITS)];

    if (__builtin_expect(!code.num_bits, 0))
        code = long_code(table, reader->bits);
    consume(reader, code.num_bits % FOLLOWS);
    if (__builtin_expect(code.num_bits & FOLLOWS, 0)) {
        int num_bits = code.value;

        code.value = (int16_t)extended(reader->bits, num_bits);
        consume(reader, num_bits);
    }
    return code;
}

/* Whether the block's other coefficients are sound. */
static inline int read_ac(BitReader *reader, const HuffmanTable *table, JCOEF *block)
{
    int i = 1, num;
    Code code;

    for (;;) {
        refill(reader);
#pragma GCC unroll 5
        for (num = 0; num < NUM_LOOKS; num++) {
            code = table->look[reader->bits >> (64 - LOOK_BITS)];
            if (__builtin_expect((unsigned)code.num_bits - 1 >= FOLLOWS - 1, 0))
                break;
            consume(reader, code.num_bits);
            i += code.advance;
            if (i >= DCTSIZE2)
                goto last;
            block[NATURAL_ORDER[i - 1]] = code.value;
        }
        if (num == NUM_LOOKS)
            continue;
        refill(reader);
        code = next_code(reader, table);
        if (!code.num_bits)
            return 0;
        i += code.advance;
        if (i >= DCTSIZE2)
            goto last;
        block[NATURAL_ORDER[i - 1]] = code.value;
    }
last:
    if (i == DCTSIZE2)
        block[NATURAL_ORDER[i - 1]] = code.value;
    return i == DCTSIZE2 || code.advance == ENDS;
}

static inline int pass_ac(BitReader *reader, const HuffmanTable *table)
{
    int i = 1;

    while (i < DCTSIZE2) {
        Codes codes;

        refill(reader);
        codes = table->pass[reader->bits >> (64 - PASS_BITS)];
        if (__builtin_expect(codes.num_needed <= DCTSIZE2 - i, 1)) {
            consume(reader, codes.num_bits);
            i += codes.advance;
            /* Once more without a refill: at most 12 bits and the 15 of a value behind them are gone of 56. */
            codes = table->pass[reader->bits >> (64 - PASS_BITS)];
            if (codes.num_needed <= DCTSIZE2 - i) {
                consume(reader, codes.num_bits);
                i += codes.advance;
            }
        } else {
            Code code = next_code(reader, table);

            i += code.advance;
            if (!code.num_bits || (i > DCTSIZE2 && i < ENDS))
                return 0;
        }
    }
    return 1;
}

static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks)
{
    EntropyDecoder *decoder = jpeg->client_data;
    BitReader reader = decoder->reader;
    JDIMENSION column = decoder->column++;
    int number, num_blocks = jpeg->blocks_in_MCU, is_sound = 1;

    if (decoder->column == jpeg->MCUs_per_row)
        decoder->column = 0;
    if (column < decoder->first_column || column > decoder->last_column)
        blocks = NULL;
    for (number = 0; number < num_blocks && is_sound; number++) {
        int *value = &decoder->dc_value[decoder->component[number]];
        Code code;

        refill(&reader);
        code = next_code(&reader, decoder->dc[number]);
        *value += code.value;
        is_sound = code.num_bits && *value == (int16_t)*value && reader.at <= decoder->end + READ_AHEAD_BYTES;
        if (blocks != NULL)
            (*blocks[number])[0] = (JCOEF)*value;
        if (blocks != NULL && !decoder->is_dc_only[number])
            is_sound &= read_ac(&reader, decoder->ac[number], *blocks[number]);
        else
            is_sound &= pass_ac(&reader, decoder->ac[number]);
    }
    if (!is_sound || (reader.at - decoder->end) * 8 > reader.num_bits)
        decoder->odd((j_common_ptr)jpeg);
    decoder->reader = reader;
    return TRUE;
}

/* The scan's bytes without stuffing, up to its first marker, with room for a block behind. */
static int unstuff(EntropyDecoder *decoder)
{
    const unsigned char *from = decoder->jpeg->src->next_input_byte, *end = from + decoder->jpeg->src->bytes_in_buffer;
    unsigned char *to = malloc((size_t)(end - from) + MARGIN_BYTES);

    decoder->data = to;
    if (to == NULL)
        return 0;
    while (from < end) {
        const unsigned char *mark = memchr(from, 0xFF, (size_t)(end - from)), *stop = mark ? mark : end;

        memcpy(to, from, (size_t)(stop - from));
        to += stop - from;
        if (mark == NULL || mark + 1 == end || mark[1] != 0)
            break;
        *to++ = 0xFF;
        from = mark + 2;
    }
    memset(to, 0, MARGIN_BYTES);
    decoder->end = to;
    decoder->reader.at = decoder->data;
    return 1;
}

/* Between jpeg_crop_scanline and the first row: decode here, where the scan is one without restarts.
 * Wanted are the columns of the scaled image from `left_px` on. */
static void take_over(EntropyDecoder *decoder, j_decompress_ptr jpeg, HuffmanTables *kept, JDIMENSION left_px,
                      JDIMENSION width_px)
{
    JDIMENSION mcu_px = (JDIMENSION)(jpeg->max_h_samp_factor * jpeg->LEAST_SCALED_SIZE);
    int number;

    decoder->jpeg = jpeg;
    if (jpeg->restart_interval || !unstuff(decoder))
        return;
    kept->num_tiles++;
    decoder->first_column = left_px / mcu_px;
    decoder->last_column = (left_px + width_px + mcu_px - 1) / mcu_px - 1;
    for (number = 0; number < jpeg->blocks_in_MCU; number++) {
        const jpeg_component_info *component = jpeg->cur_comp_info[jpeg->MCU_membership[number]];

        decoder->component[number] = jpeg->MCU_membership[number];
        decoder->is_dc_only[number] = component->SCALED_SIZE == 1;
        decoder->dc[number] = table_of(kept, jpeg->dc_huff_tbl_ptrs[component->dc_tbl_no], 1);
        decoder->ac[number] = table_of(kept, jpeg->ac_huff_tbl_ptrs[component->ac_tbl_no], 0);
    }
    jpeg->client_data = decoder;
    jpeg->entropy->decode_mcu = decode_mcu;
}
