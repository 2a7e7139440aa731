"""What other programs call their settings, and which of those settings change nothing here."""

from __future__ import annotations

# What a setting is called, without case and marks.
CALLED: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "positiveprompt"),
    "negative_prompt": ("negativeprompt", "negative"),
    "steps": ("steps", "numinferencesteps"),
    "seed": ("seed", "noiseseed"),
    "width": ("width",),
    "height": ("height",),
    "size": ("size", "resolution"),
    "cfg": ("cfgscale", "cfg", "truecfgscale", "truecfg"),
    "guidance": (
        *("distilledcfgscale", "distilledguidance", "distilledguidancescale", "guidance", "guidancescale"),
        *("fluxguidance", "fluxguidancescale", "embeddedguidance", "embeddedguidancescale"),
    ),
    "sampler": ("sampler", "samplername"),
    "scheduler": ("scheduler", "scheduletype", "noiseschedule"),
    "model": ("model", "modelname", "basemodel", "basemodelname", "usestablediffusionmodel"),
    "loras": ("loras", "lora", "uselorasmodel", "useloramodel", "lorapaths"),
    "strengths": ("loraweights", "lorascale", "lorascales", "loraalpha"),  # of those
    "resources": ("civitairesources",),
    "adapters": ("lorahashes",),
}
KNOWN = {name: setting for setting, names in CALLED.items() for name in names}

# Changes no pixel, or is part of the model, which is chosen here.
WITHOUT_EFFECT = frozenset(
    "version swarmversion appversion mfluxversion date createddate createdat generationtime generationtimeseconds "
    "hashes modelhash basemodelhash vaehash tihashes vae vaemodel usevaemodel unet te t5encoder clipembedmodel "
    "module1 module2 module3 module4 template software metadatascheme fooocusscheme imagenumber images batchsize "
    "batchpos batchcount nsamples requesttype signedhash imageformat outputformat outputquality nopreviews aspectratio "
    "originalprompt usedwildcards wildcardseed automaticvae fullprompt fullnegativeprompt app backend parser user "
    "civitaimetadata pipeline numoutputs samplerindex usedtemplate canvasv2metadata seedmode profile numimages "
    "negativetemplate wildcardprompt wildcardnegativeprompt rawprompt rawnegativeprompt appid refinerswitch "
    "refinerswitchat".split()
)
# Settings in their off position, as text.
OFF = frozenset(("", "none", "null", "false", "0", "-1", "off", "no", "automatic", "auto", "default", "[]", "{}"))
NEUTRAL = {  # the values of others that change nothing
    "clipskip": ("1",),
    "denoisingstrength": ("1",),
    "strength": ("1",),
    "denoise": ("1",),
    "rng": ("cpu",),
    "randdevice": ("cpu",),
    "generationmode": ("txt2img", "flux_txt2img"),
    "operations": ("txt2img",),
    "type": ("txt2img",),
    "cfgrescalemultiplier": ("0",),
    "performance": ("speed", "quality"),  # names for the steps
    "uncondscale": ("1",),
    "startstep": ("1",),
}
# Extensions and second passes with many settings each: one name for all.
GROUPS = {
    "hires": "hires fix",
    "adetailer": "ADetailer",
    "controlnet": "ControlNet",
    "refiner": "refiner",
    "variationseed": "variation seed",
    "regional": "regional prompts",
    "mask": "inpainting",
    "inpaint": "inpainting",
    "freeu": "FreeU",
    "initimage": "image to image",
    "sourceimage": "image to image",
    "upscale": "upscaling",
}
