/* Decodes a part of a JPEG by libjpeg-turbo: the rows above and below are skipped, and the blocks beside are not
   transformed. For crop_decoding.py, which compiles it. */

#include <stdio.h>
#include <string.h>
#include <jpeglib.h>

int decode_part(const unsigned char *content, unsigned long bytes, unsigned left, unsigned top, unsigned width,
                unsigned height, unsigned char *out_HWC)
{
    struct jpeg_decompress_struct image;
    struct jpeg_error_mgr errors;
    unsigned char row[3 * 4096];
    unsigned char *rows[1] = {row};

    image.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&image);
    jpeg_mem_src(&image, content, bytes);
    jpeg_read_header(&image, TRUE);
    image.out_color_space = JCS_RGB;
    jpeg_start_decompress(&image);

    JDIMENSION start = left; /* becomes the left end of the block that it is in */
    JDIMENSION wide = width;
    jpeg_crop_scanline(&image, &start, &wide);
    jpeg_skip_scanlines(&image, top);

    for (unsigned number = 0; number < height; number++) {
        jpeg_read_scanlines(&image, rows, 1);
        memcpy(out_HWC + 3 * number * width, row + 3 * (left - start), 3 * width);
    }

    jpeg_abort_decompress(&image);
    jpeg_destroy_decompress(&image);
    return 0;
}
