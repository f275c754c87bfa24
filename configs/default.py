"""Every field of a configuration, with its published value, meaning and unit."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_default_configs() -> ml_collections.ConfigDict:
    """The published configuration (paper, section 3.1; its code release), tied to `weight.data_std`."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    data.path = ""                # scan file or folder of scans; empty: the embedded phantoms
    data.key = ""                 # variable in the file; empty: found
    data.kind = ""                # image | kspace; empty: found
    data.frames_axis = placeholder(int)     # axis of time in the file, e.g. -1; None: found
    data.dc = "center"            # where zero frequency lies in k-space files: center | corner
    data.phase = "smooth"         # phase given to magnitude images: smooth | none
    data.scan_frames = 0          # frames taken of a scan file; 0: all; more than it holds: its cycle is repeated
    data.scan_size = 0            # pixels; 0: as in the file; smaller: the centre of its k-space
    data.phantoms = 16            # number of embedded phantoms to train on (seeds 1, 2, …; 0 is the demo's)
    data.image_size = 192         # pixels; embedded phantoms are made at this size
    data.frames = 16              # frames; embedded phantoms are made with this number
    data.num_channels = 2         # real and imaginary part
    data.centered = True          # False: the network maps its input x to 2x − 1, as the published one does
    data.periodic = placeholder(bool)       # whether the last frame is a neighbour of the first; None: found

    config.mask = mask = ml_collections.ConfigDict()
    mask.path = ""                # mask file; empty: generated
    mask.key = ""                 # variable in the mask file; empty: found
    mask.pattern = "uniform"      # uniform | random | lattice | radial
    mask.acceleration = 4.0       # R, before the ACS
    mask.acs = 8                  # fully sampled central lines
    mask.seed = 0                 # of random lines

    config.weight = weight = ml_collections.ConfigDict()
    weight.power = 1.0            # w ∝ r^power
    weight.data_std = 0.5         # standard deviation of the weighted data per real channel

    config.pseudo_reference = reference = ml_collections.ConfigDict()
    reference.window = "nearest"  # what the local model learns from: nearest | local (the global one: global)
    reference.local_window = 4    # frames per group of window = local

    config.model = model = ml_collections.ConfigDict()
    model.nf = 128
    model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    model.num_res_blocks = 2
    model.attn_resolutions = (16,)
    model.sigma_min = 0.01        # in the units of the weighted data
    model.sigma_max = 4.0
    model.num_scales = 1000       # N, discrete noise levels
    model.fir_kernel = (1, 3, 3, 1)
    model.fourier_scale = 16.0
    model.embedding_type = "fourier"
    model.resblock_type = "biggan"
    model.progressive = "output_skip"
    model.progressive_input = "input_skip"
    model.progressive_combine = "sum"
    model.skip_rescale = True
    model.scale_by_sigma = True
    model.conditional = True
    model.nonlinearity = "swish"
    model.normalization = "GroupNorm"
    model.dropout = 0.0
    model.init_scale = 0.0
    model.ema_rate = 0.999

    model.temporal = False        # every level sees the frames before and after, too; for objectives with context
    model.patch = 1               # pixels that the network takes as one, per side

    # objective synthetic: images that a network sees beside the frame it denoises
    config.context = context = ml_collections.ConfigDict()
    for name, offsets, mean in (("global", (-4, -2, -1, 1, 2, 4), True), ("local", (-2, -1, 1, 2), False)):
        context[name] = images = ml_collections.ConfigDict()
        images.offsets = offsets  # neighbouring frames
        images.mean = mean        # temporal mean of the scan
        images.merge = True       # the frame with its missing samples from the nearest frames that have them
        images.own = True         # image of the frame's own samples
        images.near = True        # image of the samples that only a neighbour in time has

    config.training = training = ml_collections.ConfigDict()
    # dsm: published, from pseudo-references; synthetic: from moving scenes; measured: from samples hidden from the
    # OU, of scans nobody has the rest of
    training.objective = "dsm"
    training.batch_size = 4       # frames per step, of all processes and accumulated parts together
    training.accumulation = 1     # parts, one after the other, that a process makes of its share of a batch
    training.precision = "fp32"   # fp32 | bf16: autocast of the network's layers; weights and average stay float32
    training.workers = placeholder(int)     # processes that draw batches beforehand; None: 0 on a CPU, else up to 12
    training.n_iters = 2_000_001
    training.log_freq = 50        # steps between TensorBoard scalars
    training.image_freq = 5000    # steps between TensorBoard images (denoised samples)
    training.snapshot_freq = 10000          # steps between checkpoints that are kept
    training.keep_snapshots = 5   # of those, the newest that stay
    training.snapshot_freq_for_preemption = 1000   # steps between saves of the checkpoint to resume from
    training.max_gain = 1.25      # augmentation: image gain between 1/max_gain and max_gain
    training.max_shift = 8        # augmentation: circular image shift, pixels

    training.compile = False      # torch.compile the training step (needs a C++ compiler on a CPU)
    training.init = ""            # model.safetensors to begin from, for GM and LM alike; empty: at random
    # synthetic, and measured where ou.operator is auto: the OU whose errors are learned: llr | motion (several
    # times the time per scene)
    training.ou = "llr"
    training.scenes = 2000        # synthetic: scenes that are drawn
    training.scene_frames = 16    # synthetic, measured: most frames of one scan in a batch
    training.columns = 48         # synthetic, measured: columns of a scan in a batch, where lines were sampled; 0: all
    training.steps = 2            # synthetic, measured: steps of the cascade, trained through and so used
    training.sigma_jitter = 0.25  # synthetic: standard deviation of log σ as the network is told it
    training.error_gain = 1.25    # measured: σ as the network is told it, in units of the error estimated
    training.hidings = 8          # measured: ways to hide samples of each scan
    training.partial_share = 0.25           # synthetic: share of scenes with part of the error
    training.noisy_share = 0.15   # synthetic: share of scenes with Gaussian noise in place of part of the error

    config.optim = optim = ml_collections.ConfigDict()
    optim.lr = 2e-4
    optim.schedule = "constant"   # after the warm-up; cosine: falls to 0 at training.n_iters
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.warmup = 5000           # steps
    optim.grad_clip = 1.0

    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.sampler = "published"          # published: the paper's; cascade: few steps from a matched noise level
    sampling.order = ("global", "local")    # the models of the cascade, in their order
    sampling.start = "zero_filled"          # zero_filled | pseudo_reference
    sampling.steps = 6            # cascade, priors without context: noise levels, one network pass each
    sampling.churn = 0.0          # cascade: fresh noise per step, in units of its σ; 0: deterministic
    sampling.trust_levels = (0.02, 0.05, 0.1, 0.2, 0.4)    # cascade: first noise levels tried, in units of data_std
    sampling.error_gain = 1.25    # cascade, priors with context: first noise level, in units of the estimated error
    # cascade: share of the error on hidden samples that a prior must explain to be followed
    sampling.trust_margin = 0.02  # without context, the best of several levels
    sampling.context_margin = 0.005         # with context
    sampling.adapt = 0.0          # cascade, priors with context: seconds to adapt them to the scan by what it measured
    sampling.adapt_steps = 0      # the same in steps, for a repeatable result: the first limit that is met; 0: none
    sampling.adapt_margin = 0.05  # share of the error on validation samples that an adapted prior must take away
    sampling.samples = 0          # cascade: posterior samples for a map of the likely error; 0: no map
    sampling.sigma_max = 4.0      # published: first noise level
    sampling.sigma_min = 0.01     # published: last noise level, reached only when iterations = num_scales
    sampling.num_scales = 1000    # published: N, levels between the two
    sampling.iterations = 300     # published: levels used, from sigma_max down
    sampling.snr = 0.075          # published: r of the Langevin corrector
    sampling.copies = 3           # published: noise copies that share a corrector step
    sampling.batch_size = 16      # frames per network pass; a network with model.temporal takes all in one
    sampling.precision = "fp32"   # fp32 | bf16: of the network passes
    sampling.compile = False      # torch.compile the networks; on a GPU as CUDA graphs
    # standard deviation of the measured samples, in units of the scan's scale, for the data consistency of the steps
    # with a prior; 0: hard, as in the OU alone, from which `cascade` starts
    sampling.noise_std = 0.0

    config.ou = ou = ml_collections.ConfigDict()
    ou.after = "both"             # both: after GM and LM (paper, Fig. 1); last: after LM only (its code); never
    # hankel: structured (published); llr: locally low rank; both; motion: llr, then along the motion; auto: by sampler
    ou.operator = "auto"
    ou.window = 8                 # hankel: k-space window, samples
    ou.rank = 0                   # hankel: singular vectors kept; 0: the published share, 96 at 16 frames and window 8
    ou.sweeps = 1                 # hankel: subspace iterations per step; 0: exact eigh
    ou.hankel_iterations = 20     # hankel: iterations of the OU alone
    ou.patches = (6, 8, 12)       # llr: patch sizes in turn, pixels
    ou.noise_floor = 0.0004       # llr: noise per pixel, in units of the scan's scale; 0: found on hidden samples
    ou.hard = False               # llr: keep or drop singular values (hard) rather than shrink them (soft)
    ou.anneal = 4.0               # llr: the threshold begins this many times larger
    ou.llr_iterations = 100       # llr: FISTA iterations of the OU alone
    ou.motion_patches = (4, 6, 8)  # motion: sides of the patches to choose from on hidden samples, pixels
    ou.motion_patch = 0           # motion: side of the patches; 0: found
    ou.motion_steps = 40          # motion: steps of the schedule of noise levels …
    ou.motion_taken = 0           # … and how many of them are taken; 0: found with the patch
    ou.motion_first = 0.05        # motion: noise per pixel of the first step, in units of the scan's scale …
    ou.motion_last = 0.001        # … and of the last

    config.eval = evaluate = ml_collections.ConfigDict()
    evaluate.path = ""            # scan file or folder to reconstruct with --mode=eval; empty: the embedded scan
    evaluate.checkpoint_global = ""         # empty: the one trained under --workdir
    evaluate.checkpoint_local = ""
    return config
