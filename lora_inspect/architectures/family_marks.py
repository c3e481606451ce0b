"""Facts of families that need no import of their files, written by `python docs/write_family_marks.py`."""

from collections.abc import Mapping

DESCENDS_FROM: Mapping[str, str] = {
    "cosmos": "cosmos1",
    "anima": "cosmos",
    "chroma": "flux",
    "flux2": "flux",
    "gpt_bigcode": "gpt2",
    "framepack": "hunyuan_video",
    "hunyuan_image": "hunyuan_video",
    "hunyuan_video_1_5": "hunyuan_video",
    "hidream_o1": "llm",
    "ltx2": "ltx_video",
    "sd2": "sd15",
}
METADATA_NAMES: Mapping[str, tuple[str, ...]] = {
    "auraflow": ("auraflow",),
    "anima": ("anima", "anima-preview", "anima-unknown"),
    "ernie_image": ("ernie", "ernie_image", "ernieimagetransformer2dmodel"),
    "flux": (
        "flux1",
        "flux_kontext",
        "flux.1",
        "flux.1-dev",
        "flux-1",
        "flux-1-dev",
        "flux-1-schnell",
        "flux.1_kontext",
        "flux.1-fill-dev",
        "fluxtransformer2dmodel",
    ),
    "chroma": ("chroma", "chroma1", "chromatransformer2dmodel"),
    "flux2": (
        "flux2",
        "flux.2",
        "flux2_klein_4b",
        "flux2_klein_9b",
        "flux_2_dev",
        "flux_2_klein_4b",
        "flux_2_klein_9b",
        "flux.2-dev",
        "flux.2-klein-4b",
        "flux.2-klein-9b",
    ),
    "hidream_i1": ("hidream_i1", "hidream-i1"),
    "hunyuan_video": ("hunyuan_video", "hunyuan-video", "hunyuanvideotransformer3dmodel"),
    "framepack": ("framepack", "hunyuanvideoframepacktransformer3dmodel"),
    "hunyuan_image": ("hunyuan-image-2.1", "hunyuan-image"),
    "hunyuan_video_1_5": ("hunyuan_video_1_5", "hunyuan-video-1.5"),
    "ideogram4": ("ideogram4", "ideogram-4", "ideogram"),
    "kandinsky5": ("kandinsky5", "kandinsky-5"),
    "krea2": ("krea2", "krea-2"),
    "hidream_o1": ("hidream_o1_image", "hidream-o1-image", "hidream_o1"),
    "ltx2": ("ltx2",),
    "lumina2": ("lumina2", "lumina-2", "lumina"),
    "minimax_h3": ("minimax_h3", "minimax_h3_ref2va", "minimaxh3transformer3dmodel"),
    "qwen_image": (
        "qwen_image",
        "qwen_image_edit",
        "qwen_image_layered",
        "qwen-image",
        "qwen-image-edit",
        "qwen-image-edit-plus",
        "qwen-image-edit-2511",
        "qwen-image-layered",
    ),
    "qwen_image_2": ("qwenimage21transformer2dmodel",),
    "sd15": ("sd_v1", "sd_v1_v", "sd_1.5", "stable-diffusion-v1", "stable-diffusion-v1-inpainting"),
    "sd2": (
        "sd_v2",
        "sd_v2_v",
        "sd_2.1",
        "stable-diffusion-v2-512",
        "stable-diffusion-v2-768-v",
        "stable-diffusion-v2",
        "stable-diffusion-v2-inpainting",
        "stable-diffusion-v2-depth",
    ),
    "sd3": (
        "sd_3",
        "medium",
        "5-medium",
        "5-large",
        "stable-diffusion-3",
        "stable-diffusion-3-medium",
        "stable-diffusion-3-5-medium",
        "stable-diffusion-3-5-large",
        "stable-diffusion-v3-medium",
        "stable-diffusion-v3.5",
    ),
    "sdxl": (
        "sdxl_base_v1-0",
        "sdxl_1.0",
        "sdxl_",
        "stable-diffusion-xl-v1-base",
        "stable-diffusion-xl-v1-base-inpainting",
    ),
    "wan": ("wan", "wan2.1", "wan_2.1", "wan_2.2_14b", "wan_2.2_5b"),
    "z_image": ("z_image", "zimage", "z-image"),
}
# The marks of the paths of all layouts.
PATHS: Mapping[str, str] = {
    "ace_step": """
02e9 07a0 0983 1317 18d9 2b02 2bf4 551c 5b34 6b96 744c 8d13 9b0d 9feb a10c a822 ad97 b374 bad8 cc15 d0f4 e3d3 f2ae f4be
f576 f7bd faf2
""",
    "ace_step_1_5": """
098b 0c4d 0d81 0ec2 180d 1b06 1e3f 1e9c 1f18 2684 3fc4 438a 45c0 49ab 4a60 4e60 5369 5503 5656 588a 6965 69bb 7327 7990
7af1 7b72 9bd5 9bff a38e a3f8 ad95 b257 b81b b9e3 c11d c951 ca8e cef6 d130 d424 d649 e09e e5dc eb67 f8b2 fd37
""",
    "auraflow": """
0a6f 0d02 1167 157e 184f 288d 2f4d 32fc 3371 3413 3546 3860 387d 3ec6 3f76 4403 5c7a 6623 6c43 6d90 7ad6 7b2b 7bbc 7c08
836c 83f9 84a1 90d0 941a 985e a049 a720 a7d5 ae1e c062 c525 c5dc ccfb d2a5 d50d d8c0 d9e0 db16 e05b e3b3 e4ef e877 f01c
f13d f193 f3a8 f4bd f519 f853 faef
""",
    "bert": """
0135 0717 09f7 0f36 1b4c 2429 25bb 2ddf 2e40 4a36 4cbf 50c3 5730 5f00 6616 696c 6c0d 70b0 735e 7524 867f 8fe6 91ef a809
ae7f c8ae ca89 ca94 d005 d473 d87d e110 e61b ef8f f642 f672 f6ea fbf1
""",
    "cosmos1": """
0f72 23a0 3660 40d6 4403 5af8 61b2 7a62 7ad8 848d 9b17 9efa 9f70 bfaf da61 efab fef9
""",
    "cosmos": """
00d4 0951 0f72 1317 23a0 2697 28bc 29c3 3660 3bed 40d6 4403 4cfe 4ff4 5960 5af8 5dba 61b2 623b 6846 7a62 7ad8 820e 848d
86c7 8754 9b17 9efa 9f70 a01c a48d b564 bfaf d259 d6ef da61 e191 efab efb5 f023 f2a2 fef9
""",
    "anima": """
00d4 0951 0f72 1317 18c2 23a0 2562 28bc 29c3 3660 3dbd 40d6 4403 4cfe 4ff4 5960 5af8 61b2 6846 6877 6e73 7a62 7ad8 81c3
820e 848d 8754 9b17 9efa 9f70 a00e a01c b555 b564 b8fb bfaf d259 da34 da61 e191 efab efb5 f023 fc76 fef9
""",
    "distilbert": """
00a6 1348 25ac 33fd 35ae 54ef 5ae3 5b6e 6c0d 735e 758b 78e9 7e70 99b2 b6e3 cf37 d005 dc39 e110 e450 e463
""",
    "ernie_image": """
07ac 0dae 182f 3007 45c0 7eea 8994 a989 ae1e af80 ba40 d14d fd37
""",
    "flux": """
04e7 06ed 1167 1317 14c4 1a64 1ab9 1ba6 1cd5 2092 28cc 2cc8 370f 4096 4403 4851 49f9 5959 5b68 5bd8 61b2 63aa 664c 69dd
6ab6 8126 848d 8c53 8df4 9699 985e 9b8b aa6d ad08 c5dc c6b0 c98b cbf4 cc15 d0f4 d5af dd97 ddf8 e1f2 e4db e5be e877 ea7b
f0c0 f250 f2ae f9f4 faef faf2
""",
    "chroma": """
06ed 1167 1317 14c4 1561 1ba6 2092 28cc 3e38 4403 4851 50de 5b68 61b2 62f8 6ab6 8126 848d 8bb4 8c53 aa6d ad08 c5dc c6b0
cbf4 cc15 d0f4 dd97 ddf8 e877 ea7b f250 f2ae f9f4 faef faf2
""",
    "flux2": """
06ed 1317 14c4 1a64 1ba6 1d50 2092 32ad 4403 4851 59ff 5b68 5bd8 779c 7f54 7f9b 8126 8c53 8d96 928e 985e 9b8b a136 aa6d
ad08 bc9b c98b cc15 d0f4 dbf3 dd97 ddf8 deff e5be e5e4 e877 ea7b f250 f2ae f984 f9f4 faf2
""",
    "gpt2": """
1e3a 2c62 301d 41eb 4f99 50cd 557f 5f5d 65de 6f2f 7122 7662 7a62 8afb 8dcc 99fd a044 beb2 e110 f5b8 fb57 feb6
""",
    "gpt_bigcode": """
1e3a 2c62 301d 41eb 4f99 50cd 557f 5f5d 65de 6f2f 7122 7662 7a62 8afb 8dcc 99fd a044 beb2 e110 f5b8 fb57 feb6
""",
    "gpt_neox": """
0177 0b22 198f 1bc6 29e4 317d 4e98 50cd 5fb5 681c 6c0d 7122 83d1 bdcd e110
""",
    "hidream_i1": """
1142 1317 15fb 184f 1b3b 1fd0 21c6 23df 3007 34c2 3bf3 45dd 4993 4c39 5aa1 6476 6883 6885 7a78 8885 8e39 8fd3 9d9f a436
b70c b750 b8b9 c98b cd2b d39a d686 dd11 e8dc fbb2 fbf6
""",
    "hunyuan_video": """
0281 04e7 06ed 1167 128b 1317 18e9 1a64 1ab9 1ba6 1cd5 1e72 2309 28cc 2f4b 2f52 3007 3439 370f 4096 4403 4851 49c4 49f9
4fb1 587d 5899 5b68 5b9e 5bd8 601e 61b2 63aa 664c 68af 69dd 6ab6 6bcc 7176 7324 7356 7c9c 7fa3 8126 848d 8c53 8f32 9699
985e 9b8b 9c9d a8bc aa6d ad08 bbdc bd6a c1c6 c5dc c6b0 c98b cb75 cbf4 cc15 cc56 d0f4 d92b dd97 e434 e5be e65c e71e ea7b
f0c0 f250 f2ae f9f4 faef faf2
""",
    "framepack": """
1167 18e9 1ab9 1cd5 2309 28cc 3007 370f 4403 4851 49f9 4a35 4fb1 5340 57a2 5b68 5b9e 5f4f 61b2 664c 68af 6ab6 7324 7e41
7fa3 848d 8c53 985e ad08 bbdc c5dc c6b0 cb75 cbf4 cc15 cc56 d0f4 f0c0 f2ae faef faf2
""",
    "hunyuan_image": """
0281 06ed 0d88 1167 128b 1317 18e9 1a64 1ab9 1ba6 1e72 2309 28cc 2f4b 2f52 3007 3439 370f 4096 4403 4851 49c4 49f9 4fb1
587d 5899 5b68 5b9e 5bd8 5d54 601e 61b2 63aa 68af 69dd 6ab6 6bcc 7176 7324 7356 7685 7c9c 7fa3 8126 848d 8c53 8f32 928e
985e 9b8b 9c9d a47c a8bc aa6d ad08 bbdc bd6a c1c6 c5dc c6b0 c98b cb75 cbf4 cc15 cc56 d0f4 d92b dd97 deff e434 e5be e65c
e71e ea7b f250 f2ae f9f4 faef faf2
""",
    "hunyuan_video_1_5": """
0281 06ed 0b42 0d88 112b 128b 1317 18e9 1a64 1ab9 1ba6 1e72 2309 28cc 2f4b 2f52 3007 3439 370f 4096 4403 4851 49c4 4d35
4fb1 5899 5b68 5b9e 5d54 601e 61b2 68af 69dd 6bcc 7176 7196 7324 7356 758e 767c 7685 7c9c 7fa3 8126 848d 8c53 8f32 985e
9add 9b8b 9c9d a47c a8bc aa6d ab6a ad08 af77 ba8f bbdc bd6a c1c6 c6b0 c98b cb75 cc15 cc56 d0f4 d92b dd97 e3d6 e434 e65c
f250 f2ae faf2
""",
    "ideogram4": """
0335 0c98 1317 23b8 2841 44b9 4934 5709 7b57 8d7c 9ef2 be9a bf70 cac9 d14a d1a8 e667 ec4f
""",
    "kandinsky5": """
0352 11c4 1402 26f8 29c5 3321 3d37 44cf 4c01 54b7 572c 574c 6334 6ea4 7860 82a4 8a42 a2c7 c706 ca08 d33c e1c9 ef69 fa75
fbfd
""",
    "krea2": """
0156 018a 1317 14c4 1c81 2421 267f 2926 299d 2ad7 2c2e 2f1b 34c2 3621 3a44 455c 4a09 4a49 4b13 4f42 541e 5af0 6bd4 6ed4
704c 77ad 8cd9 8f89 9100 92f0 9371 a71d a783 aa1b aa26 b6b4 b90c bbd3 c2e9 c7e1 cbb0 cc15 ce0f d067 d0f4 d46d d4e2 d94c
e043 e2bb ea39 eaa3 eb60 eb67 ee1c f08c f2ae f40c faf2 fe9a
""",
    "llm": """
0030 0137 017f 0187 037c 03f7 0591 05a2 06c7 0761 07a3 091b 0958 099e 0a91 0b5e 0bdf 0c68 0d65 0e81 0f78 0f95 102f 104c
1093 1350 13c2 1413 141c 145a 1481 14ba 1643 18ca 1916 191b 1990 19b8 1b04 1b10 1bdd 1c9b 1d7f 205e 2113 21f6 23a8 2484
24c6 252e 25e3 2668 276f 284b 288f 28d1 28ff 2936 29aa 2c56 2c94 2cff 2d29 2df3 2e40 3046 3385 3458 348e 3588 3779 3a81
3b1b 3c94 3cb9 3e48 3ee2 405b 41dc 438a 443b 4588 45c0 45d2 4618 4802 4832 4989 499b 49d1 49dc 4b40 4bcd 4cdd 4d50 4d62
4f39 506d 50b1 50cb 50cd 516f 51f2 528e 533c 5369 53e2 5434 5546 5578 55ec 5655 5703 57ae 5824 58aa 58c7 5b75 5b9a 5bda
5d7a 5e09 5e8b 61d0 6252 63f7 6495 64c7 64d3 664c 6770 6781 686a 68e8 6965 6a0b 6c31 6d6b 6efd 6ff9 7026 70ad 7122 724a
72ab 72c4 7327 735a 7464 756a 760e 7643 781b 789d 78bd 7919 7be9 7dbb 7f33 7f65 7fb0 80ed 8160 81fd 8213 82db 832c 85c4
86a2 86f4 8860 88c0 899f 89b9 8a2a 8a2d 8a61 8a8f 8abb 8d66 8e5b 8ea5 8f34 9007 904b 9261 92a7 92fb 92fd 93a0 93b3 9428
9592 966e 971b 976d 97cc 97db 9835 993f 9954 9959 9ac3 9bd5 9c0b 9c6a 9ca8 9cfa 9d1b 9f18 9f46 9f6b 9f8f a032 a135 a1af
a2ad a2da a356 a3b5 a3fc a4da a4fc a525 a55a a566 a674 a6dd a764 a92d a9a5 abab ad0f ad4d ad6c ad84 ae9f af72 b078 b0bd
b0ed b114 b24d b266 b269 b37c b43d b4ad b52e b585 b614 b639 b743 b804 b874 b8fe b94e b960 b970 b9bb bb96 bc21 bd27 bd37
bdaf bdd0 be15 bea9 bf0b bf31 c103 c176 c1ee c1f5 c270 c287 c2f8 c4ce c4fa c5df c868 c8c1 c9a7 c9f5 ca60 cadc cc9f cd19
cd6e cd9f cdae cdaf cdbc cde1 cfe3 cffd d066 d06c d0e0 d11f d176 d1a7 d267 d399 d3aa d3c9 d3d1 d433 d47e d4e6 d790 da8c
dd1a dd2c dff7 e0f3 e17e e649 e6f5 e711 e75d e76f e7f1 ea2e ea6d ea80 ec33 ec98 edfc ee47 ee4e ee81 ee89 f161 f248 f250
f262 f32e f496 f4f1 f69a f85d f924 faf9 fb6d fd37 fde9 ff34
""",
    "hidream_o1": """
029f 037c 039f 096b 0e2e 1153 158c 1643 1b10 1c9b 21f6 26b0 37da 3cb9 3ee2 487c 4ae9 53d9 543e 5b75 64d3 6578 6bad 6bd8
7221 7464 7c44 8170 8f6d 904b 966e 96ae 982d a004 a7bc b614 cdbc d1e0 d3aa d765 e7f1 f248
""",
    "ltx_video": """
00df 0bec 3660 42f2 4403 5af8 61b2 7a62 7ad8 848d 9638 9b17 9efa 9f70 bfaf c1f4 cd99 fbba
""",
    "ltx2": """
00df 04b7 0572 06b4 06b5 0770 08c7 0bec 0bf6 1dc0 21ed 27c4 2fe4 3660 3ac9 3e2d 42f2 4399 4403 443a 4dc6 503d 554e 565f
5af8 602e 61b2 61e5 6378 6747 686d 6ec0 71e4 74da 74ea 7a62 7ad8 7bc3 7ed7 7fd5 8440 848d 86c0 8db1 92db 9638 96bf 973d
9b17 9efa 9f70 a500 ab02 abf4 b3ea b4f1 ba1b ba2b bac4 bd99 bfaf c1f4 c53a c53b ca53 cd99 f2a2 f2de f3a0 f3b1 f572 fa13
fbba fd46
""",
    "lumina2": """
0c29 1317 13e0 3089 313c 3860 3d9e 418e 44b9 51e6 614d 61ac 6370 6389 6819 7e25 84c5 87a1 956d 9b59 adf6 aeb0 b5d5 b979
be9a c7a0 c828 c98b cac9 d76b ddf5 ddf8 e409 e667 e674 e8dc efa3 efab f0c8 fa55 fbbc fe75
""",
    "minimax_h3": """
0221 0764 0fab 1152 1524 2670 27bf 29bb 399f 409c 4403 602e 612e 61b2 671b 6df8 7e14 818a 848d 96ff 985e b2bf b3cf b4af
b8a0 bb8f c607 cc15 d0f4 d7e2 e877 ebf8 ed6f f2ae f3b1 faf2 fbba
""",
    "qwen_image": """
14c4 1cd5 2092 23e3 2ee8 4055 4403 4851 5b68 8100 8c53 985e ab2a ad08 c79c cc15 d0f4 f2ae f9aa faf2
""",
    "qwen_image_2": """
14c4 1c05 1cd5 4403 5648 8580 985e a4ef bcc3 c683 cc15 cd71 d0f4 f2ae faf2
""",
    "sd15": """
10db 1121 11a6 1204 1422 1468 1504 1825 183b 19f9 1cd1 202a 22e4 24a9 2766 2bd9 2c58 30ee 31a8 3416 3697 3a1d 3a40 3ff6
4118 4577 45d9 47bb 56b1 5888 66dc 6b90 6d1f 6dd7 70da 7101 718c 728b 736f 760a 78ec 7f87 7f8f 80db 82be 85b3 863a 8763
87ba 87d4 9312 9675 987a 9c8e 9ca2 9fec a389 a989 acad ad62 ad89 ae3e af34 af5f b766 b783 b9f4 bb6f bbc0 bd06 bd16 bd88
c149 c2d3 c66f c70e c790 c7d9 c8a0 c9af cd7d cdc4 cefa d08e d17c d3d6 d728 d7ef d864 d98f e290 e3a3 e4bb e4f6 e84e e8b9
eaa8 ebb6 ee1b eea2 eeca f172 f31f f445 f4e7 ff2a
""",
    "sd2": """
10db 1121 11a6 1204 1422 1468 1504 1825 183b 19f9 1cd1 202a 22e4 24a9 2766 2bd9 2c58 30ee 31a8 3416 3697 3a1d 3a40 3ff6
4118 4577 45d9 47bb 56b1 5888 66dc 6b90 6d1f 6dd7 70da 7101 718c 728b 736f 760a 78ec 7f87 7f8f 80db 82be 85b3 863a 8763
87ba 87d4 9312 9675 987a 9c8e 9ca2 9fec a389 a989 acad ad62 ad89 ae3e af34 af5f b766 b783 b9f4 bb6f bbc0 bd06 bd16 bd88
c149 c2d3 c66f c70e c790 c7d9 c8a0 c9af cd7d cdc4 cefa d08e d17c d3d6 d728 d7ef d864 d98f e290 e3a3 e4bb e4f6 e84e e8b9
eaa8 ebb6 ee1b eea2 eeca f172 f31f f445 f4e7 ff2a
""",
    "sd3": """
05c0 1317 1ab9 1b5f 1cd5 28cc 2c1a 3007 3660 370f 3860 3865 41e1 4403 4851 5285 56f5 5b68 5c7a 61b2 63be 664c 7a62 7ad8
7ddf 848d 8c53 9859 985e 9b17 ad08 b43d c6b0 c98b cc15 d0f4 d2ac da39 e877 f2ae faf2
""",
    "sdxl": """
10db 1121 11a6 1204 1422 1468 1504 1825 183b 19f9 1cd1 202a 22e4 24a9 2766 2bd9 2c58 30ee 31a8 3416 3697 3a1d 3a40 3ff6
4118 4577 45d9 47bb 56b1 5888 66dc 6b90 6d1f 6dd7 70da 7101 718c 728b 736f 760a 78ec 7f87 7f8f 80db 8252 82be 85b3 863a
8763 87ba 87d4 9289 9312 9675 987a 9c8e 9ca2 9fec a389 a989 acad ad62 ad89 ae3e af34 af5f b766 b783 b9f4 bb6f bbc0 bd06
bd16 bd88 c149 c2d3 c66f c70e c790 c7d9 c8a0 c9af cd7d cdc4 cefa d08e d17c d3d6 d728 d7ef d864 d98f e290 e3a3 e4bb e4f6
e84e e8b9 eaa8 ebb6 ee1b eea2 eeca f172 f31f f445 f4e7 ff2a
""",
    "t5": """
0f99 2ee1 33e5 3c8a 3d6b 3d7e 3ebd 467f 4831 4a79 50cd 537a 5d14 5e05 5e78 60d6 66c3 66c9 69cb 6b11 6bae 6fc4 6fca 73de
7697 7755 7cdf 7f98 7ffe 8b3c 8b71 8c38 93e3 9a35 b6f9 bf54 bffa c2a3 c307 c81f c8ad cba4 d126 e110 e74b ee78 f51b f743
fe1c ff59
""",
    "wan": """
0907 09ea 0a68 0c81 0ec3 0ef6 12ee 18f2 244c 2483 2697 2c50 2d49 31f7 39d0 3b48 3c2f 3e77 3f28 4403 4bec 59ff 5bed 61e0
6919 6a0b 6e71 7079 716a 71da 7ce2 7e70 7f8e 830b 849b 9841 9965 9a02 a775 af4c b5b9 b6e3 b87d bd02 c14b c1d0 c317 c51f
c759 ccf7 d24b d6ef db0a db44 dd12 de9f e46b e78f edcd ede3 f119 f60c fc40
""",
    "z_image": """
0c29 1317 13e0 1548 3860 418e 44b9 4934 5370 585d 5e59 614d 6370 677b 69cc 6eab 7b57 7e25 84c5 87a1 9065 956d 98a9 9ef2
b5d5 b979 be9a c98b cac9 d05f d459 ddf5 ddf8 e409 e667 e8dc ec4f
""",
}
