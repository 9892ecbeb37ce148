"""Which files are images, and which are videos, by their names alone."""

IMAGE_EXTENSIONS = frozenset(
    ".apng .avif .avifs .blp .bmp .bw .cur .dcx .dds .dib .emf .eps .fit .fits .flc .fli .ftc .ftu "
    ".gbr .gif .heic .heif .icb .icns .ico .iim .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg "
    ".jpx .jxl .mpo .msp .palm .pbm .pcd .pcx .pdf .pfm .pgm .png .pnm .ppm .ps .psd .pxr .qoi .ras .rgb "
    ".rgba .sgi .svg .tga .tif .tiff .vda .vst .webp .wmf .xbm .xpm".split()
)
"""Files that are rows: what Pillow registers, and image formats that will be rows in error."""


def is_image(name: str) -> bool:
    """Whether a file or member of this name is a row."""
    return "." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


VIDEO_EXTENSIONS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split())
"""Files that no model here takes, though some were trained for them."""


def is_video(name: str) -> bool:
    """Whether a file of this name, or of this extension, is a video."""
    return "." + name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS
