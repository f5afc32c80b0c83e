"""Whether the images of a batch differ in coarse structure as much as photographs do."""

import torch
from torch import Tensor

from emptyset.images.cosine_spectrum import cosine_basis, photo_amplitudes

# Along each side: average colour and seven half periods.
FREQUENCIES = 8
# Of a photograph's amplitudes.
_EXPONENT = 1.0
_SMALLEST = 1e-4


def photo_spread(images_NCHW: Tensor) -> Tensor:
    """How far the spread of coarse structure over a batch is from that of photographs.

        loss = mean over c and k, l < 8 of (ln d_ckl − ln(σ_c a_kl))²

    with d_ckl the standard deviation over the images of their cosine coefficients (row k, column l,
    DCT-II), σ_c that of all pixels of the channel, and a_kl ∝ 1 / frequency, of mean square 1
    (``photo_amplitudes``). The statistics that BatchNorm stores cannot tell variance between images
    from variance within each; photographs have most of it between them, in their coarse structure.

    Args:
        images_NCHW: ``(N, C, H, W)``, any units; N at least 2.

    Returns:
        Scalar, 0 or more; 0 where images spread as photographs do.

    Source:
        Ours. That amplitudes of photographs fall as 1 / frequency: Field 1987, "Relations between
        the statistics of natural images and the response properties of cortical cells".
    """
    height, width = images_NCHW.shape[2:]
    device = images_NCHW.device
    rows = cosine_basis(height, device)[:FREQUENCIES]
    columns = cosine_basis(width, device)[:FREQUENCIES]
    amplitudes = photo_amplitudes(height, width, _EXPONENT, device)
    pixels = images_NCHW.float()
    coefficients = rows @ pixels @ columns.T
    between = coefficients.var(dim=0, correction=0).clamp(min=_SMALLEST)
    whole = pixels.var(dim=(0, 2, 3), correction=0).clamp(min=_SMALLEST)
    expected = amplitudes[:FREQUENCIES, :FREQUENCIES].square() * whole[:, None, None]
    # Logarithms of variances are twice those of deviations.
    return ((torch.log(between) - torch.log(expected)) / 2).square().mean()
