# Every published figure that is not marked as of an older machine: from the repository's top folder, in this order.
# Downloads come by themselves; data/cifar10-jpeg is CIFAR-10 as a folder of JPEGs (--data cifar10 is the original).

# README.md, Results
python -m report.race confirmed
python char_rnn.py --data tinyshakespeare --out runs/char_rnn-tiny
python char_rnn.py --data data/shakespeare-works --dropout 0.2 --steps 8000 --out runs/char_rnn-shakespeare-works-2x512
python vae.py --data mnist --binarize --image-size 28 --arch mlp --latent-dim 50 --steps 80000 --lr 1e-3 --samples 1000 --out runs/vae-binary-mlp50
python vae.py --data mnist --binarize --image-size 28 --arch mlp --latent-dim 50 --steps 80000 --lr 1e-3 --samples 1000 --seed 1 --out runs/vae-binary-mlp50-seed-1
python vae.py --data mnist --binarize --image-size 28 --arch mlp --latent-dim 50 --steps 80000 --lr 1e-3 --samples 1000 --seed 2 --out runs/vae-binary-mlp50-seed-2
python vae.py --data mnist --binarize --image-size 28 --latent-dim 50 --steps 10000 --out runs/vae-binary-conv50
python vae.py --data mnist --binarize --image-size 28 --latent-dim 50 --steps 20000 --samples 128 --out runs/vae-binary-conv50-20000
python vae.py --data mnist --binarize --image-size 28 --latent-dim 12 --steps 10000 --out runs/vae-binary-conv12
python vae.py --data mnist --binarize --image-size 28 --latent-dim 12 --steps 10000 --seed 1 --out runs/vae-binary-conv12-seed-1
python vae.py --data mnist --binarize --image-size 28 --latent-dim 12 --steps 10000 --seed 2 --out runs/vae-binary-conv12-seed-2
python dcgan.py --data data/cifar10-jpeg --steps 5000 --out runs/dcgan-cifar10-jpeg32-gan
python dcgan.py --data data/cifar10-jpeg --hidden-dim 32 --steps 11000 --out runs/dcgan-cifar10-jpeg32-w32
python dcgan.py --eval --weights runs/dcgan-cifar10-jpeg32-w32/best_fd_lenet.pth
python dcgan.py --eval --weights weights/dcgan-cifar10.pth --data data/cifar10-jpeg
python simclr.py --data data/cifar10-jpeg --batch-size 128 --steps 1250 --warmup 100 --lr 0.12 --half-size 0.9 --out runs/simclr-20min
python simclr.py --data data/cifar10-jpeg --batch-size 128 --steps 4500 --warmup 200 --lr 0.12 --half-size 0.9 --out runs/simclr-2h
cp -r runs/simclr-2h runs/simclr-2h-5000  # goes on from there; the measurements below take that of 4,500 steps
python simclr.py --data data/cifar10-jpeg --batch-size 128 --steps 5000 --warmup 200 --lr 0.12 --half-size 0.9 --out runs/simclr-2h-5000

# report/vae.md, fid.md and dcgan.md: β, the homework's three VAEs; faces
python -m report.race beta
python -m report.race latents --only "3, tsinghua" "10, tsinghua" "100, tsinghua" "10, mlp"
python -m report.race latents --only "3, tsinghua, lr 3e-3" "10, tsinghua, lr 3e-3" "100, tsinghua, lr 3e-3" --seeds 0
python vae.py --data data/lfw-bush --latent-dim 64 --steps 3000 --out runs/faces-vae
python -m report.race faces --seeds 0 --only "lr 1e-3"

# report/gan_mnist.md
python gan_mnist.py --data mnist --beta1 0.5 --sample-every 469 --out runs/gan-default
python gan_mnist.py --data mnist --beta1 0.5 --sample-every 469 --lr 0.003 --out runs/gan-collapsed
python gan_mnist.py --data mnist --beta1 0.5 --sample-every 469 --lr 0.003 --loss lsgan --steps 2613 --out runs/lsgan-collapsed
python gan_mnist.py --data mnist --beta1 0.5 --sample-every 469 --lr 0.003 --arch conv --steps 469 --out runs/conv-cured
python gan_mnist.py --data mnist --beta1 0.5 --sample-every 469 --lr 0.002 --steps 1876 --log-every 469 --out runs/gan-lr2
python -m report.race collapse
python -m report.race collapsed

# report/recipes.md
python -m report.race gan-dense --seeds 0 1
python -m report.race gan-dense-3000 --seeds 0
python -m report.race gan-conv --seeds 0
python -m report.race dcgan-mnist --seeds 0 1
python -m report.race dcgan-mnist-3000 --seeds 0
python -m report.race dcgan-mnist-8000 --seeds 0
python -m report.race dcgan-cifar10 --seeds 0
python -m report.race dcgan-cifar10-1000 --seeds 0
python -m report.race vae --seeds 0 1
python -m report.race vae-10000 --seeds 0
python -m report.race vae-20000 --seeds 0
python -m report.race binarized --seeds 0
python -m report.race simclr --seeds 0

# What no script prints by itself: tables to standard output, pictures into report/pictures/
python -m report.measure windows
python -m report.measure memory
python -m report.measure shuffled
python -m report.measure temperature
python -m report.measure plays
python -m report.measure beta
python -m report.measure latents
python -m report.measure homework
python -m report.measure prior
python -m report.measure draws
python -m report.measure subset
python -m report.measure gradients
python -m report.measure games
python -m report.measure blind
python -m report.measure sharpness
python -m report.measure interpolation
python -m report.measure faces
python -m report.measure few_labels
python -m report.measure distance
python -m report.measure photographs

# report/speed.md
python -m report.bench --only race
