"""Training losses: of fields, of extracted surfaces, of pictures."""

from fastshape.losses.fields import distance_loss as distance_loss
from fastshape.losses.fields import occupancy_loss as occupancy_loss
from fastshape.losses.fields import soft_occupancy as soft_occupancy
from fastshape.losses.fields import tsdf_loss as tsdf_loss
from fastshape.losses.pictures import depth_loss as depth_loss
from fastshape.losses.pictures import load_lpips as load_lpips
from fastshape.losses.pictures import lpips_loss as lpips_loss
from fastshape.losses.pictures import mask_loss as mask_loss
from fastshape.losses.pictures import normal_loss as normal_loss
from fastshape.losses.pictures import sparse_tsdf_loss as sparse_tsdf_loss
from fastshape.losses.pictures import ssim as ssim
from fastshape.losses.pictures import ssim_loss as ssim_loss
from fastshape.losses.pictures import toward_camera as toward_camera
from fastshape.losses.pictures import view_tsdf_loss as view_tsdf_loss
from fastshape.losses.pictures import warm_up as warm_up
from fastshape.losses.surfaces import corner_consistency_loss as corner_consistency_loss
from fastshape.losses.surfaces import corner_edges as corner_edges
from fastshape.losses.surfaces import deviation_loss as deviation_loss
from fastshape.losses.surfaces import sign_change_loss as sign_change_loss
from fastshape.losses.surfaces import total_variation_loss as total_variation_loss
from fastshape.losses.surfaces import weight_loss as weight_loss
from fastshape.losses.volumes import dice_loss as dice_loss
from fastshape.losses.volumes import structure_loss as structure_loss
