/* A rectangle of a baseline JPEG tile, by libjpeg-turbo: rows above it and columns beside it are passed over
 * (_jpeg_entropy.h), rows below it are not read. And what makes a patch of such rectangles.
 *
 * Only the plain case is served. Whatever is unusual or damaged is answered by False, and the caller
 * decodes the whole tile, which gives the same pixels or says what is wrong.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "_jpeg_entropy.h"

#define MAX_ROWS 16
#define MAX_SIDE 65535
#define CHANNELS 3

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf gave_up;
    unsigned char *rows;
    EntropyDecoder entropy;
} Decoder;

typedef struct {
    const unsigned char *data;
    size_t size_bytes;
    int is_rgb;
    unsigned int tile_width_px, tile_height_px, denominator;
    unsigned int x_px, y_px, width_px, height_px;
    unsigned char *out;
    Py_ssize_t stride_bytes;
} Job;

static void give_up(j_common_ptr common)
{
    longjmp(((Decoder *)common)->gave_up, 1);
}

static void on_message(j_common_ptr common, int level)
{
    if (level < 0 && common->err->msg_code != JWRN_EXTRANEOUS_DATA)
        give_up(common);
}

/* A tile that contradicts its slide's header on colour is the caller's affair. */
static int is_plain(const struct jpeg_decompress_struct *jpeg, const Job *job)
{
    return jpeg->image_width == job->tile_width_px && jpeg->image_height == job->tile_height_px
        && jpeg->num_components == CHANNELS && jpeg->comps_in_scan == CHANNELS && jpeg->data_precision == 8
        && !jpeg->progressive_mode && !jpeg->arith_code
        && (jpeg->jpeg_color_space == JCS_RGB ? job->is_rgb
            : jpeg->jpeg_color_space == JCS_YCbCr && (!job->is_rgb || jpeg->saw_JFIF_marker));
}

/* Whether a component has fewer columns than the scaled image. */
static int upsamples(const struct jpeg_decompress_struct *jpeg)
{
    int i;

    for (i = 0; i < jpeg->num_components; i++)
        if (jpeg->comp_info[i].h_samp_factor * jpeg->comp_info[i].SCALED_SIZE
            < jpeg->max_h_samp_factor * jpeg->LEAST_SCALED_SIZE)
            return 1;
    return 0;
}

/* Upsampling looks at the chroma sample on either side: take in a pixel before and two after the
 * rectangle, so that the cut does not look like the edge of the image. */
static void crop(Decoder *decoder, const Job *job, HuffmanTables *kept, JDIMENSION *left)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION beside = upsamples(jpeg), right = job->x_px + job->width_px + 2 * beside, width;

    if (right > jpeg->output_width)
        right = jpeg->output_width;
    *left = job->x_px ? job->x_px - beside : 0;
    width = right - *left;
    jpeg_crop_scanline(jpeg, left, &width);
    if (kept != NULL)
        take_over(&decoder->entropy, jpeg, kept, *left, width);
}

/* Rows lie at odd addresses: those at a multiple of 32 libjpeg-turbo writes past the cache, and they are read at
 * once. */
static void read_rows(Decoder *decoder, const Job *job, JDIMENSION left)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    size_t row_bytes = ((size_t)jpeg->output_width * CHANNELS + 1) & ~(size_t)1;
    JSAMPROW rows[MAX_ROWS];
    JDIMENSION done = 0, i, num;

    decoder->rows = malloc(1 + row_bytes * MAX_ROWS);
    if (decoder->rows == NULL)
        give_up((j_common_ptr)jpeg);
    for (i = 0; i < MAX_ROWS; i++)
        rows[i] = decoder->rows + 1 + i * row_bytes;
    while (done < job->height_px) {
        num = job->height_px - done;
        num = jpeg_read_scanlines(jpeg, rows, num < MAX_ROWS ? num : MAX_ROWS);
        if (num == 0)
            give_up((j_common_ptr)jpeg);
        for (i = 0; i < num; i++, done++)
            memcpy(job->out + (Py_ssize_t)done * job->stride_bytes,
                   rows[i] + (size_t)(job->x_px - left) * CHANNELS, (size_t)job->width_px * CHANNELS);
    }
}

static void decode_rectangle(Decoder *decoder, const Job *job, HuffmanTables *kept)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION left;

    jpeg_mem_src(jpeg, job->data, job->size_bytes);
    if (jpeg_read_header(jpeg, TRUE) != JPEG_HEADER_OK)
        give_up((j_common_ptr)jpeg);
    if (job->is_rgb && !jpeg->saw_JFIF_marker && !jpeg->saw_Adobe_marker)
        jpeg->jpeg_color_space = JCS_RGB;
    if (!is_plain(jpeg, job))
        give_up((j_common_ptr)jpeg);
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    jpeg->scale_num = 1;
    jpeg->scale_denom = job->denominator;
    jpeg_start_decompress(jpeg);
    if (job->x_px + job->width_px > jpeg->output_width || job->y_px + job->height_px > jpeg->output_height)
        give_up((j_common_ptr)jpeg);
    crop(decoder, job, kept, &left);
    if (job->y_px && jpeg_skip_scanlines(jpeg, job->y_px) != job->y_px)
        give_up((j_common_ptr)jpeg);
    read_rows(decoder, job, left);
}

/* With tables the codes are read by our own decoder, without by libjpeg's, to which falls what that one leaves. */
static int decode(const Job *job, HuffmanTables *kept)
{
    Decoder decoder;
    volatile int done = 0;
    int took_over;

    memset(&decoder, 0, sizeof decoder);
    decoder.jpeg.err = jpeg_std_error(&decoder.errors);
    decoder.errors.error_exit = give_up;
    decoder.errors.emit_message = on_message;
    decoder.entropy.odd = give_up;
    if (setjmp(decoder.gave_up) == 0) {
        jpeg_create_decompress(&decoder.jpeg);
        decode_rectangle(&decoder, job, kept);
        done = 1;
    }
    took_over = decoder.entropy.data != NULL;
    jpeg_destroy_decompress(&decoder.jpeg);
    free(decoder.rows);
    free(decoder.entropy.data);
    return done || (took_over && decode(job, NULL));
}

/* Decode the job's tile behind the tables' segments, which begin with SOI, as one stream. */
static int decode_joined(Job *job, HuffmanTables *kept, const unsigned char *tables, size_t tables_bytes)
{
    const size_t soi_bytes = 2;
    unsigned char *joined;
    int done;

    if (job->size_bytes < soi_bytes || job->data[0] != 0xFF || job->data[1] != 0xD8)
        return 0;
    if (tables_bytes <= soi_bytes)
        return decode(job, kept);
    joined = malloc(tables_bytes + job->size_bytes - soi_bytes);
    if (joined == NULL)
        return 0;
    memcpy(joined, tables, tables_bytes);
    memcpy(joined + tables_bytes, job->data + soi_bytes, job->size_bytes - soi_bytes);
    job->data = joined;
    job->size_bytes += tables_bytes - soi_bytes;
    done = decode(job, kept);
    free(joined);
    return done;
}

static int takes_pixels(const Py_buffer *out)
{
    return out->ndim == 3 && out->itemsize == 1 && out->shape[2] == CHANNELS && out->strides[2] == 1
        && out->strides[1] == CHANNELS && out->shape[0] > 0 && out->shape[1] > 0
        && out->shape[0] <= MAX_SIDE && out->shape[1] <= MAX_SIDE;
}

/* The job of one tile and the part of it that is wanted; 0 with an exception set where there is none.
 * A tile that is no bytes has no job of size: it is left to the caller. */
static int read_job(Job *job, PyObject *tile, PyObject *part, const Py_buffer *region)
{
    unsigned int left_px, top_px;
    Py_ssize_t number;

    if (!PyArg_ParseTuple(part, "nIIIIII", &number, &job->x_px, &job->y_px, &left_px, &top_px,
                          &job->width_px, &job->height_px))
        return 0;
    if (!job->width_px || !job->height_px || job->x_px > MAX_SIDE || job->y_px > MAX_SIDE
        || job->width_px > region->shape[1] || left_px > region->shape[1] - job->width_px
        || job->height_px > region->shape[0] || top_px > region->shape[0] - job->height_px) {
        PyErr_SetString(PyExc_ValueError, "a part lies outside the region");
        return 0;
    }
    job->out = (unsigned char *)region->buf + (Py_ssize_t)top_px * region->strides[0]
        + (Py_ssize_t)left_px * CHANNELS;
    job->stride_bytes = region->strides[0];
    if (PyBytes_Check(tile)) {
        job->data = (const unsigned char *)PyBytes_AS_STRING(tile);
        job->size_bytes = (size_t)PyBytes_GET_SIZE(tile);
    }
    return 1;
}

/* Those that no thread uses now; both with the interpreter's lock held. */
static HuffmanTables *unused_tables = NULL;

static HuffmanTables *take_tables(void)
{
    HuffmanTables *taken = unused_tables;

    if (taken == NULL)
        return calloc(1, sizeof *taken);
    unused_tables = taken->next;
    return taken;
}

static void give_back(HuffmanTables *taken)
{
    if (taken == NULL)
        return;
    taken->next = unused_tables;
    unused_tables = taken;
}

static PyObject *run(const Job *kind, PyObject *tables, PyObject *tiles, PyObject *parts, const Py_buffer *region)
{
    Py_ssize_t num = PyTuple_GET_SIZE(parts), i;
    Job *jobs = PyMem_Calloc((size_t)num + 1, sizeof *jobs);
    PyObject *done = PyBytes_FromStringAndSize(NULL, num);
    HuffmanTables *kept = take_tables();

    if (jobs == NULL || done == NULL || kept == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (i = 0; i < num; i++) {
        jobs[i] = *kind;
        if (!read_job(&jobs[i], PyTuple_GET_ITEM(tiles, i), PyTuple_GET_ITEM(parts, i), region))
            goto failed;
    }
    Py_BEGIN_ALLOW_THREADS
    for (i = 0; i < num; i++)
        PyBytes_AS_STRING(done)[i] = (char)decode_joined(
            &jobs[i], kept, (const unsigned char *)PyBytes_AS_STRING(tables), (size_t)PyBytes_GET_SIZE(tables));
    Py_END_ALLOW_THREADS
    give_back(kept);
    PyMem_Free(jobs);
    return done;
failed:
    give_back(kept);
    PyMem_Free(jobs);
    Py_XDECREF(done);
    return NULL;
}

PyDoc_STRVAR(decode_parts_doc,
"decode_parts(tables, is_rgb, tile_width_px, tile_height_px, denominator, tiles, parts, region) -> bytes\n"
"\n"
"Write the parts of tiles, scaled by 1 / denominator, into region, a uint8 [h, w, 3] view. A part is (number,\n"
"x_px, y_px, left_px, top_px, width_px, height_px): its corner in the tile, then in the region. For\n"
"each is returned 1, or 0: not done, and what is in the region there means nothing.");

static PyObject *decode_parts(PyObject *module, PyObject *arguments)
{
    Py_buffer region;
    PyObject *tables, *tiles, *parts, *target, *done = NULL;
    Job kind;

    (void)module;
    memset(&kind, 0, sizeof kind);
    if (!PyArg_ParseTuple(arguments, "SpIIIO!O!O", &tables, &kind.is_rgb, &kind.tile_width_px,
                          &kind.tile_height_px, &kind.denominator, &PyTuple_Type, &tiles, &PyTuple_Type, &parts,
                          &target))
        return NULL;
    if (PyObject_GetBuffer(target, &region, PyBUF_STRIDED | PyBUF_WRITABLE) < 0)
        return NULL;
    if (!takes_pixels(&region))
        PyErr_SetString(PyExc_ValueError, "region must be a writable uint8 [h, w, 3] view with whole pixels");
    else if (PyTuple_GET_SIZE(tiles) != PyTuple_GET_SIZE(parts))
        PyErr_SetString(PyExc_ValueError, "tiles and parts must be as many");
    else
        done = run(&kind, tables, tiles, parts, &region);
    PyBuffer_Release(&region);
    return done;
}

/* Area averaging of RGB pixels, as OpenCV's INTER_AREA rounds it: float32 sums, first along rows, then down.
 * It takes a sample at a time; here the three samples of a pixel are one vector. */
typedef float Samples __attribute__((vector_size(16)));

/* How much of an input row or column goes into one of the output. */
typedef struct { int32_t in, out; float share; } Share;

typedef struct { Py_buffer pixels; Py_ssize_t width_px; } Image;

/* A row of the input, averaged across: out[i] is the sum of shares of its pixels, in order. */
static void across(const unsigned char *row, Py_ssize_t width_px, const Py_buffer *columns, float *wide, Samples *out)
{
    const Share *share = columns->buf, *end = share + columns->len / (Py_ssize_t)sizeof *share;
    Py_ssize_t i;
    Samples pixel;

    for (i = 0; i < width_px * CHANNELS; i++)
        wide[i] = row[i];
    memset(out, 0, (size_t)(end[-1].out + 1) * sizeof *out);
    for (; share < end; share++) {
        memcpy(&pixel, wide + (Py_ssize_t)share->in * CHANNELS, sizeof pixel);
        out[share->out] += pixel * share->share;
    }
}

static void put(const Samples *sums, Py_ssize_t width_px, unsigned char *row)
{
    const float to_integer = 12582912.0f; /* 1.5 × 2²³: the sum's low bits are the value, rounded half to even */
    union { Samples samples; uint32_t bits[4]; } rounded;
    Py_ssize_t i;
    int channel;

    for (i = 0; i < width_px; i++) {
        rounded.samples = sums[i] + to_integer;
        for (channel = 0; channel < CHANNELS; channel++)
            *row++ = (unsigned char)rounded.bits[channel];
    }
}

static void shrink(const Image *in, const Image *out, const Py_buffer *columns, const Py_buffer *rows, float *memory)
{
    const Share *down = rows->buf;
    Py_ssize_t num = rows->len / (Py_ssize_t)sizeof *down, width_px = out->width_px, i, j;
    Samples *line = (Samples *)memory, *sums = line + width_px;

    memset(sums, 0, (size_t)width_px * sizeof *sums);
    for (i = 0; i < num; i++) {
        if (i == 0 || down[i].in != down[i - 1].in)
            across((unsigned char *)in->pixels.buf + down[i].in * in->width_px * CHANNELS, in->width_px,
                   columns, (float *)(sums + width_px), line);
        for (j = 0; j < width_px; j++)
            sums[j] += line[j] * down[i].share;
        if (i + 1 == num || down[i + 1].out != down[i].out) {
            put(sums, width_px, (unsigned char *)out->pixels.buf + down[i].out * width_px * CHANNELS);
            memset(sums, 0, (size_t)width_px * sizeof *sums);
        }
    }
}

static int lies_inside(const Py_buffer *shares, Py_ssize_t in_px, Py_ssize_t out_px)
{
    const Share *share = shares->buf, *end = share + shares->len / (Py_ssize_t)sizeof *share;

    for (; share < end; share++)
        if (share->in < 0 || share->in >= in_px || share->out < 0 || share->out >= out_px)
            return 0;
    return shares->len > 0;
}

PyDoc_STRVAR(shrink_doc,
"shrink(region, width_px, patch, patch_width_px, columns, rows) -> None\n"
"\n"
"Write region, uint8 [h, w, 3], into the smaller patch, both contiguous, averaged by columns and rows: bytes\n"
"of (int32 in, int32 out, float32 share), ascending, with every pixel of the patch among them.");

static PyObject *shrink_region(PyObject *module, PyObject *arguments)
{
    Image in, out;
    Py_buffer columns, rows;
    float *memory = NULL;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*nw*ny*y*", &in.pixels, &in.width_px, &out.pixels, &out.width_px,
                          &columns, &rows))
        return NULL;
    if (in.width_px > 0 && out.width_px > 0 && lies_inside(&columns, in.width_px, out.width_px)
        && lies_inside(&rows, in.pixels.len / CHANNELS / in.width_px, out.pixels.len / CHANNELS / out.width_px)) {
        memory = PyMem_RawMalloc((size_t)(8 * out.width_px + CHANNELS * in.width_px + 1) * sizeof *memory);
        if (memory == NULL)
            PyErr_NoMemory();
    } else
        PyErr_SetString(PyExc_ValueError, "the shares lie outside the region or the patch");
    if (memory != NULL) {
        Py_BEGIN_ALLOW_THREADS
        shrink(&in, &out, &columns, &rows, memory);
        Py_END_ALLOW_THREADS
        PyMem_RawFree(memory);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&columns);
    PyBuffer_Release(&out.pixels);
    PyBuffer_Release(&in.pixels);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"decode_parts", decode_parts, METH_VARARGS, decode_parts_doc},
    {"shrink", shrink_region, METH_VARARGS, shrink_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_jpeg_part", "Parts of JPEG tiles by libjpeg-turbo.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__jpeg_part(void)
{
    return PyModule_Create(&definition);
}
