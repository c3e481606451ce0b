"""What is known of families without their files, written by `python docs/write_family_marks.py`."""

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
    "flux": ("flux1", "flux_kontext", "flux.1", "flux.1-dev", "flux-1", "flux-1-dev", "flux-1-schnell"),
    "chroma": ("chroma",),
    "flux2": (
        "flux2",
        "flux2_klein_4b",
        "flux2_klein_9b",
        "flux_2_dev",
        "flux_2_klein_4b",
        "flux_2_klein_9b",
        "flux.2-dev",
        "flux.2-klein-4b",
        "flux.2-klein-9b",
    ),
    "hidream_i1": ("hidream_i1",),
    "hunyuan_video": ("hunyuan_video", "hunyuan-video"),
    "framepack": ("framepack",),
    "hunyuan_image": ("hunyuan-image-2.1", "hunyuan-image"),
    "hunyuan_video_1_5": ("hunyuan_video_1_5", "hunyuan-video-1.5"),
    "ideogram4": ("ideogram4", "ideogram-4"),
    "kandinsky5": ("kandinsky5", "kandinsky-5"),
    "krea2": ("krea2", "krea-2"),
    "hidream_o1": ("hidream_o1_image", "hidream-o1-image"),
    "ltx2": ("ltx2",),
    "lumina2": ("lumina2", "lumina-2", "lumina"),
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
    "sd15": ("sd_v1", "sd_v1_v", "sd_1.5", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "sd_v2_v", "sd_2.1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
    "sd3": (
        "sd_3",
        "medium",
        "5-medium",
        "5-large",
        "stable-diffusion-3",
        "stable-diffusion-3-medium",
        "stable-diffusion-3-5-medium",
        "stable-diffusion-3-5-large",
    ),
    "sdxl": ("sdxl_base_v1-0", "sdxl_1.0", "sdxl_", "stable-diffusion-xl-v1-base"),
    "wan": ("wan", "wan2.1", "wan_2.2_14b", "wan_2.2_5b"),
    "z_image": ("z_image", "zimage", "z-image"),
}
# The marks of the paths of all layouts.
PATHS: Mapping[str, str] = {
    "ace_step": """
043f 0b23 0eca 2180 2ea8 35d2 4271 4327 4594 59a9 61a9 6547 7918 7927 805d 9c33 9e80 9fea a0bf a58e aaea c446 cea1 d7d2
ea0e ec84 f259
""",
    "ace_step_1_5": """
0beb 1cb0 1fa8 2a16 2bd7 33a5 3b53 410b 438d 5179 54bc 5611 5cce 5d74 60d2 67f6 6800 76c9 7b7e 8183 8575 8a0b 8c3d 941f
9867 a488 a606 a9c8 adc0 ae1b b10f b5cd b964 bc85 be66 bfd7 cadf cdbc cdf0 ce5e e537 e69e e6d2 ec0d efd6 fd48
""",
    "auraflow": """
00bb 024e 07d6 100d 117a 1567 167f 16b7 1ac8 20b1 2496 2e26 2f17 301e 33a4 3774 3a0a 3fda 43ce 5144 5303 54e9 56d3 5deb
5fa0 61a4 62c2 66ce 77e7 7aa6 7ca9 7cd4 85ae 971a 9c85 a308 aa79 aefa b8cd c370 cd17 cdca d48a d4b9 d54a d66d dc52 eab6
eb0e ef05 f6e7 f9c4 fc74 fdaf ff40
""",
    "bert": """
02c8 0680 1109 1522 1cc9 279c 3402 374f 3b32 3ea1 4464 470e 4ac4 4b09 4e1b 52a3 555c 55c5 5f1d 5f27 604c 67ff 687a 7170
72f7 7c0f 810b 827f 85a5 93f8 9a04 a6d6 a71b abf5 bde2 d470 d99d e44c eb1b
""",
    "cosmos1": """
0e27 1395 22fc 3c8b 4404 4e25 5052 527a 78ab 79b2 a928 c2b1 c3a8 c914 db86 f20a f6e7
""",
    "cosmos": """
01c8 02d4 02d5 0488 058e 073e 0da6 0e27 1391 1395 22fc 2329 2473 3035 335b 3536 38e4 3c8b 4404 4e25 5052 527a 6068 629a
6306 6547 78ab 79b2 8e4d 93bc 978a a928 bc78 bf16 bf9c c2b1 c3a8 c630 c914 db86 f20a f6e7
""",
    "anima": """
01c8 02d4 02d5 0488 058e 073e 096f 0e27 1391 1395 22fc 2329 2473 3335 3536 38e4 3c8b 4404 4b79 4e25 5052 527a 5a3c 629a
6547 6a84 78ab 79b2 8358 8e4d 978a a2a5 a928 b3e0 bf9c c2b1 c3a8 c630 c914 d8a3 db86 e0b3 f20a f5cd f6e7
""",
    "distilbert": """
1081 1745 28a6 2b36 3eb1 4464 4476 5205 5f1d 72f7 827f 973e a785 a98f c684 c7ae c863 cb55 edfe f4b6 f835
""",
    "flux": """
011e 0501 0c6f 0e27 1828 187f 1f01 233a 2e26 2ff8 337c 394a 3a0a 44e7 47d1 4992 4f0d 54bb 55c5 56d3 62c2 6547 6a7e 764b
7927 7a71 7e42 805d 8622 878d 8a0c 913b 92a5 94fc 9a55 a60f a7df aaea b69a b720 c329 c370 c80b c914 d049 df13 e008 e780
ec84 f0ff f39b f465 f6e7 f933
""",
    "chroma": """
011e 0e27 1828 187f 18df 233a 3a0a 4992 56d3 57ca 62c2 6547 6a7e 764b 7927 7a71 805d 8622 878d 913b 94fc 9a55 a60f a7df
aaea b63b b69a c329 c370 c914 ce4c ceb6 df13 e780 ec84 f6e7
""",
    "flux2": """
0c6f 1828 187f 1b77 1e0f 2e26 36ea 47d1 4992 5a2e 6032 62c2 6547 6a7e 6b38 764b 7927 7a71 7df1 805d 8622 878d 913b 94fc
a60f a7df aaea b69a bbac bd9d c329 c80b ca79 d049 d95a df13 ec84 ee58 f1d7 f2d0 f465 f6e7
""",
    "gpt2": """
04d8 0e36 19aa 1ad7 3272 3751 449c 4713 4be6 4dfd 591c 6233 71b9 72f7 8ee2 91e2 94f1 a737 a842 c475 c88c ee6d
""",
    "gpt_bigcode": """
04d8 0e36 19aa 1ad7 3272 3751 449c 4713 4be6 4dfd 591c 6233 71b9 72f7 8ee2 91e2 94f1 a737 a842 c475 c88c ee6d
""",
    "gpt_neox": """
0d78 3165 3751 4abb 5a55 671a 6873 72f7 827f 8a27 94f1 9f97 d214 dcf8 ffb5
""",
    "hidream_i1": """
085a 0a1d 10f5 299b 2a8a 2cbb 3a3e 4542 59e0 6547 655f 6976 6ee9 8436 8527 8769 97b7 9c25 9c55 a585 a721 b001 b7ff bbbe
bc38 c4a9 c60d c80b cf44 d6d3 da92 e006 ea04 f0fc f43f
""",
    "hunyuan_video": """
011e 03ea 0951 0c6f 0d1c 0e27 0f9e 1828 187f 1e89 1f01 219f 233a 2395 2632 2b88 2e26 337c 394a 3a0a 44e7 46ef 471c 47d1
4850 4992 4da0 4f0d 4f33 55c5 56d3 6347 6547 6a7e 7275 76c5 7788 7927 7eda 7fc3 805d 8436 8622 8a0c 913b 94fc 9565 9a55
9bc9 9be6 a60f a6b3 a7df a9d1 aaea b337 b61b b69a b6a0 b720 c329 c370 c80b c914 ca5c cff9 d049 d0e9 df13 e008 e780 ec84
efa9 f39b f465 f6e4 f6e7 f933
""",
    "framepack": """
011e 0c97 0d1c 0d96 0e27 0f9e 219f 233a 2e26 337c 394a 3a0a 46ef 4fb8 56d3 6347 76c5 7927 805d 8436 8622 8a0c 913b 9a55
a6b3 a7df a9d1 aaea b69a b720 c370 c914 cff9 d26b e008 e780 e83e ec84 f39b f6e4 f6e7
""",
    "hunyuan_image": """
0073 011e 03ea 0951 0c6f 0d1c 0e27 0f9e 1828 187f 1e89 219f 233a 2395 2632 2b88 2e26 30e5 3a0a 44e7 46ef 471c 47d1 4850
4992 4da0 4f0d 4f33 56d3 6032 615f 6347 6547 6a7e 7275 76c5 7788 7927 7eda 7fc3 805d 8436 8622 8a0c 913b 94fc 9565 9a55
9bc9 9be6 a60f a6b3 a7df a9d1 aaea b29b b337 b61b b69a b6a0 c329 c370 c80b c914 ca5c cff9 d049 d0e9 df13 e008 e780 ec84
ee58 efa9 f39b f465 f6e4 f6e7 f933
""",
    "hunyuan_video_1_5": """
0073 011e 03ea 0951 0d1c 0e27 0f9e 187f 1e89 219f 2395 2632 2b88 2d82 2e26 30e5 44e7 46ef 471c 47d1 4850 4da0 4f33 554b
5dba 615f 6347 6547 6614 6a7e 7275 76c5 7788 7927 7fc3 805d 8436 8622 8a0c 8bbc 913b 94fc 9565 9bc9 9be6 9d8c 9f6e a4c0
a60f a6b3 a7df a9d1 aaea b29b b61b b69a b6a0 c329 c80b c819 c914 ca5c cff9 d049 d0e9 df13 e008 e780 ec84 efa9 f22d f3b7
f6e4 f6e7 f933
""",
    "ideogram4": """
095c 223d 2de5 4bce 4cc9 53b3 6547 73d2 7c5f 7fc5 8498 85dd 87a7 b2b4 c1d8 c31b cc40 de6d
""",
    "kandinsky5": """
0480 1bf7 302c 3109 3512 3de8 4485 4d61 4f87 7cf0 83f0 8f3f 95d7 a27d a95a ac01 b2b6 b564 c455 d163 d8cd dcd6 e343 e697
f60d
""",
    "krea2": """
012c 0140 063a 0947 0983 09ef 0abc 0c11 0c62 0e95 0f1c 1081 124e 1496 2512 2de2 2f2d 3266 3a69 477f 4c0b 4d8a 4e2e 4fd0
60c8 63c5 6547 6665 764b 7677 7927 7ed8 805d 830a 87ed 960e 9abf 9f1f a181 aaea af8f b6ff b739 b841 b964 bb40 bc94 c808
c87e d498 e319 e4df e689 eb34 ec70 ec84 ee1c ee57 f56b fea9
""",
    "llm": """
00ed 0175 030f 034c 0368 0607 0686 06bb 0721 07c9 07e3 0919 09e8 0a99 0ac0 0beb 0bf1 0c23 0da1 0e6c 0ed3 0ed4 0f16 1073
10c2 11d8 12ea 13e9 1466 14c3 14d0 14fd 15a8 15c6 1664 1732 18d9 1ae5 1be0 1d0f 1d13 1d66 1e07 1eae 1f92 1f96 1fda 2395
2631 26dc 2727 2a16 2af9 2b3f 2b6b 2dde 2f8f 2fa6 30d1 3197 323d 32f5 33cd 349e 352b 35f6 36cc 3751 3782 37df 3815 388b
3901 396f 39dd 3b53 3b5e 3cf0 3d49 3d76 3db6 3e6b 3e76 3f85 3fa5 4067 412b 42fb 46ba 4b16 4bf1 4c37 4ce6 4dd7 4e35 4e5f
4ea7 4f4e 502b 505b 50bf 50e3 5121 5165 52aa 52b5 52f6 53bd 53be 55ef 5613 561d 5701 5ab7 5beb 5c50 5cce 5d80 5e53 5ee2
5f02 60bb 6176 6226 62bc 6306 6387 6460 6491 666d 66a5 672c 674c 6776 6800 680a 6868 69c1 6c3f 6c4b 6dca 6e6b 6ea5 6ee8
6fbc 70a1 70ad 72a6 7337 7531 7781 77e0 786c 7b55 7c8f 8636 870e 87ba 87ce 88b0 88d2 897e 89cf 8ada 8be7 8d45 8d6f 8e26
8e40 8ec6 901a 90a3 9146 91dc 91df 93a8 93e3 9416 941f 944a 9482 94a0 94b3 94f1 9503 959e 95cc 95fa 9867 98b3 99f6 9a48
9afa 9ca4 9cde 9d9c 9efb 9f09 9f17 9f83 9f9a 9fd7 a167 a17a a2af a333 a425 a436 a51f a5df a7a1 a80d a825 a895 a92f aa0c
aa6b ab50 adac ae64 b022 b0a1 b0d5 b143 b180 b237 b5e4 b6a4 b6fc b7c9 b86a b8ed b92f b9e4 baa3 bd95 be8f beb0 bf97 c166
c193 c34a c357 c37a c440 c51a c5dc c78c c7c1 cadd cbbf cbf2 cd1e cead cefd cf11 cf7d cf8b d16f d1b5 d23f d39b d46b d4da
d529 d571 d5f3 d740 d78c d7cf d9ba da03 da26 da9d daa3 db73 dc70 dcd5 dd66 de60 de72 e03a e38d e38e e45e e55f e73c e889
eb0f eb19 eb26 eb39 ec33 ece0 ee50 ef0a ef32 f234 f311 f3c2 f45f f4a5 f4e8 f59f f65c f874 f974 f99f fa86 faea fb45 fc48
fd42 fd74 fda8 fdaf
""",
    "hidream_o1": """
0120 0858 1ce8 1e07 1f06 21b4 24a8 2727 2b87 2e2c 2fbe 352b 3efb 3f53 4c6b 63c4 6491 6ee9 700e 7512 7782 7ced 9028 91df
9f17 9f9a 9fd7 a167 a410 aba2 b022 b237 c193 c589 cead cf0a cf7d e38d e38e f234 f5aa fa18
""",
    "ltx_video": """
0e27 1cdb 22fc 3c8b 4e25 5052 5139 79b2 820f 9467 a158 a928 b53a bd3f c2b1 c914 db86 f6e7
""",
    "ltx2": """
017a 0410 067c 07ab 0b6e 0e27 189e 1cdb 1f0d 1f15 21ad 22fc 2645 2b58 2ced 2fdb 327b 39e0 3c8b 41b7 4862 4dcc 4e25 5052
5139 5290 53a4 5720 5797 581a 5d6f 676d 6da3 6e25 7159 73d4 79b2 820f 82a0 8884 8aae 8d79 93df 9467 99b5 9f48 a158 a884
a928 aa89 aeed afe7 b0e2 b53a bd3f c234 c2b1 c323 c78f c914 c9ec c9f8 cb31 d2c5 db86 df11 e662 e8a4 e8a7 eb4d f6e7 f800
f8d7 ff06
""",
    "lumina2": """
024e 029c 02cc 093c 0f74 103a 1a59 262d 29dc 2acf 2de5 2fcf 36b8 415b 4505 4be3 4cc9 527a 5554 59ab 5a61 5e39 5ec4 6547
6aa1 7975 7a71 7c5f 811a 85dd 9609 a9fc b18c b821 c0b3 c30f c671 c80b cfc2 d0a0 d0a6 d4f8
""",
    "qwen_image": """
0940 2e26 394a 4725 4b66 5b1f 652e 6dc5 764b 7927 805d 8622 878d 913b a7df aaea b5e4 b69a ec84 f6e7
""",
    "sd15": """
0344 046e 08d2 0c9f 13bd 175c 1890 1c87 1dde 219e 21db 231c 23df 24d0 27f6 283d 2842 28f8 2c55 2c75 2cbb 2fa7 2ffd 31d0
33c7 3427 34b3 368f 3698 382e 3aea 3fac 415b 437e 43d3 4421 46d0 4d02 5375 5557 5a56 5a93 5d09 659d 669d 66a5 69cb 6a3e
6b50 71d7 737a 73f4 75ca 78ee 7a7c 8306 87c8 8a91 8d33 8f9e 90d3 9344 9407 9756 97b8 9d71 9f65 a32c a3e9 a9f6 aa0f ac8f
af25 b0ca b0e1 b715 b741 b74a b847 ba04 bd9e c8aa cb8a cf30 d147 d182 d3e0 d8a1 d8ce dc01 de24 e022 e1ea e4ca ea27 ec5b
ee54 ee86 efdf f0d1 f1a8 f628 f7d9 f8d0 fdd3 ff9d
""",
    "sd2": """
0344 046e 08d2 0c9f 13bd 175c 1890 1c87 1dde 219e 21db 231c 23df 24d0 27f6 283d 2842 28f8 2c55 2c75 2cbb 2fa7 2ffd 31d0
33c7 3427 34b3 368f 3698 382e 3aea 3fac 415b 437e 43d3 4421 46d0 4d02 5375 5557 5a56 5a93 5d09 659d 669d 66a5 69cb 6a3e
6b50 71d7 737a 73f4 75ca 78ee 7a7c 8306 87c8 8a91 8d33 8f9e 90d3 9344 9407 9756 97b8 9d71 9f65 a32c a3e9 a9f6 aa0f ac8f
af25 b0ca b0e1 b715 b741 b74a b847 ba04 bd9e c8aa cb8a cf30 d147 d182 d3e0 d8a1 d8ce dc01 de24 e022 e1ea e4ca ea27 ec5b
ee54 ee86 efdf f0d1 f1a8 f628 f7d9 f8d0 fdd3 ff9d
""",
    "sd3": """
011e 024e 0751 0e27 2019 22fc 2496 2c49 2cd7 2e26 337c 394a 4017 4e25 5912 62c2 6383 6547 71a3 7927 79b2 805d 8436 8622
8a0c 8fc7 913b 9e8b a7df aaea ade5 b69a c80b c914 db86 de7d e008 e780 ebf6 ec84 f6e7
""",
    "sdxl": """
0344 046e 08d2 0c9f 13bd 175c 1890 1c87 1dde 219e 21db 231c 23df 24d0 27f6 283d 2842 28f8 2c55 2c75 2cbb 2fa7 2ffd 31d0
33c7 3427 34b3 368f 3698 382e 3aea 3fac 415b 437e 43d3 4421 46d0 4d02 5375 5557 5a56 5a93 5d09 659d 669d 66a5 69cb 6a3e
6b50 71d7 737a 73f4 75ca 78ee 7a7c 8306 87c8 8a91 8d33 8f9e 90d3 9344 9407 9756 97b8 9d71 9f65 a0ae a32c a3e9 a9f6 aa0f
ac8f af25 b0ca b0e1 b715 b741 b74a b847 ba04 bd9e c8aa cb8a cf30 d147 d182 d3e0 d8a1 d8ce dc01 de24 e022 e1ea e4ca ea27
ec5b ee54 ee86 efdf f0d1 f1a8 f628 f7d9 f8d0 fa18 fdd3 ff9d
""",
    "t5": """
02c0 039e 08e8 09e1 0ae2 0bbc 0c16 1943 1ed1 2420 3175 36df 3fa3 58d6 644f 663b 6bc2 6f21 6f47 72f7 7a74 7e97 94f1 9763
9e1f a4d6 a5da aaae b14c b183 bb3a bebb c787 c80f ca14 cef7 cefb d79d dba2 dd5a df41 e391 ece5 f2c6 f398 f4bb f8bc fae4
fbba fdbc
""",
    "wan": """
01a9 026c 041b 15d4 1ba0 1c08 1e65 21f6 28b7 29de 2fa4 3100 335b 43ae 5728 5ab8 5e66 6068 6305 65c6 6c38 6ccb 6d70 7289
7581 7779 8077 82b2 8bbb 8bc6 8e03 92dd 93f7 95b1 a080 a4a3 a4b7 a70b a71c a863 af90 b14b b360 b5f2 bad4 be6d c21a c5b0
c87a c901 cbc5 d60d d689 de02 e24a e2db e518 e71f ecae f446 f6e7 f8d3 f968
""",
    "z_image": """
024e 029c 103a 1a59 254b 2acf 2de5 4992 4bce 4be3 4cc9 5554 59ab 6547 74d4 7975 7a71 7c5f 7fc5 811a 85dd 8dae a9fc b0e8
b18c b2b4 c000 c0b3 c30f c80b d0a0 de6d e177 e561 e761 e9df f7db
""",
}
