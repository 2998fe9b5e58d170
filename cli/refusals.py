"""What a CLIP is asked for and is not: one sentence each, which names the tool that is."""

QUESTIONS = (
    "a CLIP scores statements and answers no questions: put its image tower into a vision-language model, such as "
    "transformers' LlavaForConditionalGeneration."
)
IMAGES = "a CLIP makes no images: diffusion models do, and take its text tower."
DETECTION = (
    "a CLIP is no trained detector, and transformers' Owlv2ForObjectDetection is one: `hf-clip locate` finds what "
    "labels name without having learned boxes."
)
MODERATION = (
    "a CLIP knows nothing of what is allowed: measure thresholds for concepts of your own on labeled images, with "
    "`hf-clip eval zero-shot --operating-point fpr=0.01 --save decisions.safetensors`."
)
# By the verbs that people try.
REFUSALS = {
    **dict.fromkeys(("ask", "answer", "vqa", "chat"), QUESTIONS),
    **dict.fromkeys(("generate", "imagine", "txt2img", "text-to-image"), IMAGES),
    **dict.fromkeys(("detect", "detection"), DETECTION),
    **dict.fromkeys(("moderate", "moderation", "nsfw"), MODERATION),
}
